// The header of a bucket that is still coming: read first, so that what does not belong is refused before gigabytes have come.

import type { Readable } from "node:stream";
import {
  HEADER_PREFIX_BYTES,
  parseSafetensorsHeader,
  readHeaderLength,
  type SafetensorsHeader,
} from "../../checkpoint/safetensors-header.js";
import { countOf } from "../../contract/count-of.js";
import { LayercastError } from "../../contract/errors.js";

/** `whole` gives all of the body, the header included. `takeRoom` is asked before a header of so many bytes is read. */
export async function readHeaderFirst(
  body: Readable,
  sizeBytes: number,
  name: string,
  takeRoom: (headerBytes: number) => void,
): Promise<{ header: SafetensorsHeader; whole: AsyncIterable<Uint8Array> }> {
  const late = setTimeout(() => body.destroy(headerLate(name)), HEADER_WITHIN_MS);
  try {
    return await readWithRoom(body, sizeBytes, name, takeRoom);
  } finally {
    clearTimeout(late);
  }
}

/** While it comes it takes room that other buckets may need. */
const HEADER_WITHIN_MS = 60_000;

async function readWithRoom(body: Readable, sizeBytes: number, name: string, takeRoom: (headerBytes: number) => void) {
  const chunks = body[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  const nextChunk = () =>
    chunks.next().catch((error: unknown) => {
      throw error instanceof LayercastError ? error : bodyAborted(name, sizeBytes, error);
    });
  const first: Buffer[] = [];
  let bytes = 0;
  const read = async (wanted: number) => {
    while (bytes < wanted) {
      const { done, value } = await nextChunk();
      if (done) throw endsEarly(name, sizeBytes, bytes);
      first.push(value);
      bytes += value.byteLength;
    }
    return Buffer.concat(first);
  };
  const prefix = await read(Math.min(HEADER_PREFIX_BYTES, sizeBytes));
  const length = readHeaderLength(prefix.subarray(0, HEADER_PREFIX_BYTES), sizeBytes, name);
  takeRoom(length);
  const headerBytes = (await read(HEADER_PREFIX_BYTES + length)).subarray(0, HEADER_PREFIX_BYTES + length);
  return { header: parseSafetensorsHeader(headerBytes, sizeBytes, name), whole: all() };

  async function* all() {
    yield* first;
    for (let next = await nextChunk(); !next.done; next = await nextChunk()) yield next.value;
  }
}

function headerLate(name: string): LayercastError {
  return new LayercastError(
    "request_timeout",
    `the header of ${name} did not come within ${HEADER_WITHIN_MS} ms; send the bucket again, or its tensors in several`,
    { within_ms: HEADER_WITHIN_MS },
  );
}

/** Whatever a body's stream fails with is its connection's doing: nobody else's files or Redis are concerned. */
function bodyAborted(name: string, sizeBytes: number, error: unknown): LayercastError {
  const sentence = `the connection ended before all ${countOf(sizeBytes, "byte")} of ${name} had come; send the bucket again`;
  return new LayercastError("request_aborted", sentence, { bytes: sizeBytes }, error);
}

function endsEarly(name: string, expected: number, found: number): LayercastError {
  return new LayercastError(
    "checkpoint_invalid",
    `the body of ${name} ends after ${countOf(found, "byte")}, and Content-Length says ${expected}; send it again`,
    { expected, found },
  );
}
