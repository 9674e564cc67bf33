// A file that says of a rank that it is in its fleet, for health checks of containers: it is touched each time Redis has taken the
// rank's registration or its sign of life, and is not there from the start of its process until then. The lock's file tells less: its
// worker touches it also while Redis is away.

import { closeSync, futimesSync, mkdirSync, openSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";

interface Place {
  runDir: string;
  fleet: string;
  replica: number;
  rank: number;
}

/** Where all files of a rank lie. */
export function rankDirectory({ runDir, fleet, replica, rank }: Place): string {
  return join(resolve(runDir), fleet, `replica-${replica}`, `rank-${rank}`);
}

export interface RegisteredFile {
  touch(): void;
  remove(): void;
}

/** Nothing fails for it: where the file cannot be written, the rank looks unhealthy. */
export function openRegisteredFile(place: Place): RegisteredFile {
  const directory = rankDirectory(place);
  const path = join(directory, "registered");
  const trying = (change: () => void) => () => {
    try {
      change();
    } catch {
      // A full disk, or a directory that was removed.
    }
  };
  return {
    touch: trying(() => {
      mkdirSync(directory, { recursive: true });
      const file = openSync(path, "a");
      try {
        futimesSync(file, new Date(), new Date());
      } finally {
        closeSync(file);
      }
    }),
    remove: trying(() => rmSync(path, { force: true })),
  };
}
