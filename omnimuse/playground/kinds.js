// What can be made, and of what: "image", "video" and "audio" (a sound) of words, "edit" (a picture) and "film" (a video)
// of pictures, "cover" (a sound) of a sound.

/** Whether a video comes out. */
export const isVideo = (kind) => kind === "video" || kind === "film";

/** Whether a sound comes out. */
export const isSound = (kind) => kind === "audio" || kind === "cover";

/** Whether a sound goes in. */
export const hears = (kind) => kind === "cover";

/** Whether a picture or a sound goes in. */
export const startsFrom = (kind) => kind === "edit" || kind === "film" || hears(kind);

/** Whether a file is a sound. */
export const isRecording = ({ type }) => type.startsWith("audio/");

const TASKS = [
  ["image", "Picture", "text-to-image"],
  ["edit", "Picture from a picture", "image-to-image"],
  ["video", "Video", "text-to-video"],
  ["film", "Video from a picture", "image-to-video"],
  ["audio", "Sound", "text-to-audio"],
  ["cover", "Sound from a sound", "audio-to-audio"],
];

/** What a model can make here: [kind, label] pairs. */
export const kindsOf = ({ capabilities: can }) =>
  TASKS.filter(([, , task]) => can.tasks.includes(task)).map(([kind, label]) => [kind, label]);
