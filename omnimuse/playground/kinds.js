// What can be made, and of what: "image", "video" and "audio" (a sound) of words, "edit" (a picture) and "film" (a video)
// of pictures.

/** Whether a video comes out. */
export const isVideo = (kind) => kind === "video" || kind === "film";

/** Whether a sound comes out. */
export const isSound = (kind) => kind === "audio";

/** Whether a picture goes in. */
export const startsFrom = (kind) => kind === "edit" || kind === "film";

const TASKS = [
  ["image", "Picture", "text-to-image"],
  ["edit", "Picture from a picture", "image-to-image"],
  ["video", "Video", "text-to-video"],
  ["film", "Video from a picture", "image-to-video"],
  ["audio", "Sound", "text-to-audio"],
];

/** What a model can make here: [kind, label] pairs. */
export const kindsOf = ({ capabilities: can }) =>
  TASKS.filter(([, , task]) => can.tasks.includes(task)).map(([kind, label]) => [kind, label]);
