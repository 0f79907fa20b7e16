// Zips files without compressing them: audio hardly shrinks. PKWARE APPNOTE 6.3, sections 4.3.7 to 4.3.16.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});
const UTF8_NAMES = 0x0800;
const MOST_BYTES = 2 ** 32 - 1; // more needs the 64-bit form

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function record(length, ...values) { // [offset, size, value]: little-endian
  const view = new DataView(new ArrayBuffer(length));
  for (const [at, size, value] of values) size === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value, true);
  return view.buffer;
}

export async function zipped(files) {
  const parts = [], directory = [];
  let offset = 0, directoryBytes = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer()), crc = crc32(bytes), names = new TextEncoder().encode(name);
    const sizes = (at) => [[at, 4, crc], [at + 4, 4, bytes.length], [at + 8, 4, bytes.length], [at + 12, 2, names.length]];
    parts.push(record(30, [0, 4, 0x04034b50], [4, 2, 20], [6, 2, UTF8_NAMES], [12, 2, 0x21], ...sizes(14)), names, blob);
    directory.push(record(46, [0, 4, 0x02014b50], [4, 2, 20], [6, 2, 20], [8, 2, UTF8_NAMES], [14, 2, 0x21], ...sizes(16), [42, 4, offset]), names);
    offset += 30 + names.length + bytes.length;
    directoryBytes += 46 + names.length;
    if (offset + directoryBytes > MOST_BYTES) throw new Error("these clips are more than 4 GB: send them in a zip of your own");
  }
  const end = record(22, [0, 4, 0x06054b50], [8, 2, files.length], [10, 2, files.length], [12, 4, directoryBytes], [16, 4, offset]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
