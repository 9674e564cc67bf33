// How many bytes of buckets' headers are in memory together. A parsed header takes about ten times its bytes, for as long as its
// bucket is on its way, and how long it is decides whoever sends it: room is asked for before one is read.

import { countOf } from "../../contract/count-of.js";
import { LayercastError } from "../../contract/errors.js";

export interface HeaderRoom {
  /** Returns what gives the room back; `backpressure` when there is none now, `checkpoint_invalid` when there never is. */
  take(bytes: number, bucket: string): () => void;
}

/** Of one bucket: about 200,000 tensors. */
const MAX_HEADER_BYTES = 32 * 2 ** 20;
const MAX_TOGETHER_BYTES = 64 * 2 ** 20;

export function openHeaderRoom(limits = { one: MAX_HEADER_BYTES, together: MAX_TOGETHER_BYTES }): HeaderRoom {
  let taken = 0;
  return {
    take(bytes, bucket) {
      if (bytes > limits.one) throw tooLong(bytes, limits.one, bucket);
      if (taken + bytes > limits.together) throw full(limits.together);
      taken += bytes;
      return () => {
        taken -= bytes;
        bytes = 0; // given back once
      };
    },
  };
}

function tooLong(bytes: number, most: number, bucket: string): LayercastError {
  return new LayercastError(
    "checkpoint_invalid",
    `${bucket} says that its header has ${countOf(bytes, "byte")}, more than the ${most} that a bucket's may have; send its tensors in several buckets`,
    { header_bytes: bytes, max_header_bytes: most },
  );
}

function full(most: number): LayercastError {
  return new LayercastError(
    "backpressure",
    `headers of buckets that are on their way hold all of the ${countOf(most, "byte")} there are for them; send the bucket again`,
    { max_header_bytes: most },
  );
}
