// Samples as a WAV file, which every browser plays and every server reads.

const HEAD = 44; // bytes

/** A file of one channel: `samples` (blobs or arrays) are of 16 bits, `rate` of them a second. */
export function wave(samples, rate) {
  const body = new Blob(samples);
  const head = new DataView(new ArrayBuffer(HEAD));
  for (const [at, word] of [[0, "RIFF"], [8, "WAVE"], [12, "fmt "], [36, "data"]])
    [...word].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
  for (const [at, value] of [[4, HEAD - 8 + body.size], [16, 16], [24, rate], [28, 2 * rate], [40, body.size]])
    head.setUint32(at, value, true);
  for (const [at, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) head.setUint16(at, value, true);
  return new Blob([head, body], { type: "audio/wav" });
}
