// Sound that is heard while it is still made: pieces of samples, each played where the one before ends.

const LEAD = 0.1; // seconds before the first piece: the next one has come by then

let playing = null;
document.addEventListener("play", () => playing?.stop(), true); // what is there whole is played by itself

/** Plays what `play` is given, to its end or until `stop`; one at a time is heard. */
export class Player {
  play(samples, rate, channels = 1) {
    // A context of the same rate: each piece would be resampled by itself, and heard to begin.
    if (!this.context) playing?.stop(), (playing = this), (this.context = new AudioContext({ sampleRate: rate }));
    const { context } = this;
    const count = Math.floor(samples.length / channels);
    if (!count || context.state === "closed") return;
    const buffer = context.createBuffer(channels, count, rate);
    for (let channel = 0; channel < channels; channel += 1) {
      buffer.getChannelData(channel).forEach((_, at, into) => (into[at] = samples[at * channels + channel] / 32768));
    }
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    this.ends = Math.max(this.ends ?? 0, context.currentTime + LEAD);
    source.start(this.ends);
    this.ends += buffer.duration;
  }

  /** Nothing more comes: what there is plays on, unless the browser lets nothing be heard before somebody has clicked. */
  end() {
    if (!this.context) return;
    const left = this.context.state === "running" ? this.ends - this.context.currentTime : 0;
    setTimeout(() => this.stop(), 1000 * left);
  }

  stop() {
    if (playing === this) playing = null;
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}
