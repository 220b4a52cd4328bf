// What can be made, and of what: "image", "video" and "audio" (a sound) of words, "edit" (a picture) and "film" (a video)
// of pictures, "reel" (a video) of a video, perhaps with pictures to show beside it, "cover" (a sound) of a sound,
// "speech" (a sound) of words that are said, "voice" (a sound) of words that are said as a sound is.

/** Whether a video comes out. */
export const isVideo = (kind) => kind === "video" || kind === "film" || kind === "reel";

/** Whether a sound comes out. */
export const isSound = (kind) => kind === "audio" || kind === "cover" || isSpeech(kind);

/** Whether somebody speaks in it. */
const isSpeech = (kind) => kind === "speech" || kind === "voice";

/** What goes in: "picture", "video" or "sound"; empty where words are all. */
export const takes = (kind) => ({ edit: "picture", film: "picture", reel: "video", cover: "sound", voice: "sound" })[kind] ?? "";

/** Whether anything goes in beside words. */
export const startsFrom = (kind) => takes(kind) !== "";

/** What of these comes out. */
export const makes = (kind) => (isVideo(kind) ? "video" : isSound(kind) ? "sound" : "picture");

const WORDS = {
  picture: { make: "Draw", makes: "draws", making: "Drawing.", prompt: "Prompt", wish: "Say what you want to see" },
  video: { make: "Make the video", makes: "makes the video", making: "Making the video.", prompt: "Prompt",
    wish: "Say what you want to see" },
  sound: { make: "Make the sound", makes: "makes the sound", making: "Making the sound.", prompt: "Prompt",
    wish: "Say what you want to hear" },
  speech: { make: "Speak", makes: "speaks", making: "Speaking.", prompt: "Text", wish: "Write what is to be said",
    from: "In the voice of" },
};

/** How people call making something of that kind: {make, makes, making}, what they write for it {prompt, wish}, and
 *  what a sound is to it, where that is not a beginning {from}. */
export const wordsOf = (kind) => WORDS[isSpeech(kind) ? "speech" : makes(kind)];

/** What of these a file is. */
export const mediumOf = ({ type }) =>
  type.startsWith("audio/") ? "sound" : type.startsWith("video/") ? "video" : "picture";

/** What of these may come besides, to make something of that kind with a model that can do so much. */
export const besides = (kind, { max_images = 0 }) => (kind === "reel" && max_images ? "picture" : "");

/** The fields of a request that files are sent in, to make something of that kind. */
export function fieldsOf(kind, files) {
  // A file whose type nobody knows is what is asked for.
  const media = files.map((file) => (file.type ? mediumOf(file) : takes(kind)));
  const several = media.filter((medium) => medium === "picture").length > 1;
  return media.map((medium) => ({ sound: "audio", video: "video" })[medium] ?? (several ? "image[]" : "image"));
}

const TASKS = [
  ["image", "Picture", "text-to-image"],
  ["edit", "Picture from a picture", "image-to-image"],
  ["video", "Video", "text-to-video"],
  ["film", "Video from a picture", "image-to-video"],
  ["reel", "Video from a video", "video-to-video"],
  ["audio", "Sound", "text-to-audio"],
  ["cover", "Sound from a sound", "audio-to-audio"],
];

/** What a model can make here: [kind, label] pairs. */
export const kindsOf = ({ capabilities: can }) =>
  TASKS.filter(([, , task]) => can.tasks.includes(task)).map(([kind, label]) => [spoken(kind, can), label]);

// Who has voices to choose from (or none, but that of a sound) speaks.
const spoken = (kind, { choices = {}, max_sounds = 0 }) =>
  kind !== "audio" || !("voice" in choices) ? kind : max_sounds ? "voice" : "speech";
