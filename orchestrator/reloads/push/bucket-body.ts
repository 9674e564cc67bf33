// The header of a bucket that is still coming: read first, so that what does not belong is refused before gigabytes have come.

import type { Readable } from "node:stream";
import {
  HEADER_PREFIX_BYTES,
  parseSafetensorsHeader,
  readHeaderLength,
  type SafetensorsHeader,
} from "../../checkpoint/safetensors-header.js";
import { LayercastError } from "../../contract/errors.js";

/** `whole` gives all of the body, the header included. */
export async function readHeaderFirst(
  body: Readable,
  sizeBytes: number,
  name: string,
): Promise<{ header: SafetensorsHeader; whole: AsyncIterable<Uint8Array> }> {
  const chunks = body[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  const first: Buffer[] = [];
  let bytes = 0;
  const read = async (wanted: number) => {
    while (bytes < wanted) {
      const { done, value } = await chunks.next();
      if (done) throw endsEarly(name, sizeBytes, bytes);
      first.push(value);
      bytes += value.byteLength;
    }
    return Buffer.concat(first);
  };
  const prefix = await read(Math.min(HEADER_PREFIX_BYTES, sizeBytes));
  const length = readHeaderLength(prefix.subarray(0, HEADER_PREFIX_BYTES), sizeBytes, name);
  const headerBytes = (await read(HEADER_PREFIX_BYTES + length)).subarray(0, HEADER_PREFIX_BYTES + length);
  return { header: parseSafetensorsHeader(headerBytes, sizeBytes, name), whole: all() };

  async function* all() {
    yield* first;
    for (let next = await chunks.next(); !next.done; next = await chunks.next()) yield next.value;
  }
}

function endsEarly(name: string, expected: number, found: number): LayercastError {
  return new LayercastError(
    "checkpoint_invalid",
    `the body of ${name} ends after ${found} bytes, and Content-Length says ${expected}; send it again`,
    { expected, found },
  );
}
