// All that an orchestrator does on the file systems that sources lie on. Any of it may never return: a network file system whose
// server is gone holds whoever touches it. So it runs in processes of its own (source-pool.ts).

import { headerBytesOf, readCheckpointFile, requireUntouched, verifyFiles } from "../../checkpoint/checkpoint-file.js";
import { readCheckpointTable } from "../../checkpoint/checkpoint-table.js";
import { bucketOnThisHost, filesOnThisHost } from "../../checkpoint/host-files.js";
import { pathOfUri, resolveAllowed, resolveRoots } from "../../checkpoint/source-path.js";
import type { CheckpointFile } from "../../contract/plan.js";
import { hasEqualTensors } from "../push/equal-buckets.js";
import { keepFile } from "../push/keep-file.js";

/** `roots`: directories that a source may lie under. Arguments and results are data, for they cross over to another process. */
export function sourceWork(roots: readonly string[]) {
  return {
    /** The real path that a URI names. */
    resolve: async (uri: string) => resolveAllowed(pathOfUri(uri), await resolveRoots(roots)),
    readTable: (uri: string) => readCheckpointTable(uri, { allowedRoots: roots }),
    headerBytes: async (path: string) => headerBytesOf(path, await resolveRoots(roots)),
    readFile: async (path: string) => readCheckpointFile(path, await resolveRoots(roots)),
    /** Whether a reload that was planned so long ago could be loaded again. */
    verifyFiles: async (files: readonly CheckpointFile[], plannedAgoMs: number | null) =>
      verifyFiles(await filesOnThisHost(files, plannedAgoMs)),
    requireSameBucket: async (file: CheckpointFile) => requireUntouched([await bucketOnThisHost(file)]),
    hasEqualTensors,
    keepFile,
  };
}

export type SourceFiles = ReturnType<typeof sourceWork>;
