// A sound from the microphone. What browsers record is a file of their own; it becomes a WAV file here.

import { wave } from "./wave.js";

const LONGEST = 30; // seconds: as much as the server keeps of a voice
const RATE = 24000; // samples a second

/** Whether this page may ask for the microphone; one that came from another machine without TLS may not. */
export const canRecord = () => Boolean(navigator.mediaDevices && window.MediaRecorder);

/** Makes `button` begin and end a recording; `take(file)` gets it, `told(text)` what went wrong, or "". */
export function record(button, take, told) {
  let running = null;
  button.onclick = async () => {
    if (running) return running.stop();
    told("");
    button.disabled = true;
    try {
      running = await begin((seconds) => (button.textContent = `Stop after ${seconds} s`));
      button.disabled = false;
      take(await running.file);
    } catch (error) {
      told(`The microphone gave nothing: ${error.message}`);
    } finally {
      running = null;
      button.disabled = false;
      button.textContent = "Record";
    }
  };
}

/** A recording that has begun: {stop, file}, the latter a promise. `count` is told how many seconds it has lasted. */
async function begin(count) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  let seconds = 0;
  count(seconds);
  const clock = setInterval(() => ((seconds += 1) < LONGEST ? count(seconds) : recorder.stop()), 1000);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const file = new Promise((resolve) => (recorder.onstop = resolve)).then(() => {
    clearInterval(clock);
    for (const track of stream.getTracks()) track.stop(); // so that the browser no longer says that it listens
    return asWave(new Blob(parts));
  });
  recorder.start();
  return { stop: () => recorder.stop(), file };
}

async function asWave(blob) {
  const heard = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  const samples = Int16Array.from(heard.getChannelData(0), (x) => 32767 * Math.max(-1, Math.min(1, x)));
  return new File([wave([samples], RATE)], "recording.wav", { type: "audio/wav" });
}
