// What a push looks like from outside: what the rank has taken, the memory that its buffers hold, how matrices were written; and
// the one warning about the order of tensors.

import { countOf } from "../../orchestrator/contract/count-of.js";
import { joinNames } from "../../orchestrator/contract/join-names.js";
import type { RankPush } from "../../orchestrator/contract/push.js";
import type { WarningReport } from "../../orchestrator/contract/reload.js";
import type { Intake } from "../intake/intake.js";
import type { Loading } from "../loading.js";
import { megabytes } from "./buffer-room.js";
import { heldNow } from "./take-bucket.js";

const MODULES_SHOWN = 20;

export function showPush({ report, pushes }: Loading, intake: Intake): void {
  const { cells, taken, peakBytes } = intake;
  const modules = [...cells.heldByModule].sort(([, a], [, b]) => b - a);
  const shown: RankPush = {
    buckets_taken: taken.size,
    buffers: {
      host_bytes: heldNow(intake, pushes),
      device_bytes: 0, // slices wait in the host's memory, on a GPU's rank too
      peak_host_bytes: peakBytes,
      peak_device_bytes: 0,
      modules: modules
        .slice(0, MODULES_SHOWN)
        .map(([module, bytes]) => ({ module, host_bytes: bytes, device_bytes: 0 })),
      module_count: modules.length,
    },
    paths: { ...cells.paths },
  };
  report.pushed(shown);
}

/** Two or more modules that are filled at the same time hold memory that none of them needs to. */
export async function warnOfOrder(loading: Loading, intake: Intake, thresholdBytes: number): Promise<void> {
  const { pushes, owner } = loading;
  const { heldByModule } = intake.cells;
  const bytes = [...heldByModule.values()].reduce((sum, held) => sum + held, 0);
  if (intake.warned || heldByModule.size < 2 || bytes <= thresholdBytes) return;
  const names = [...heldByModule.keys()].sort();
  const warning: WarningReport = {
    code: "out_of_order",
    message:
      `${megabytes(bytes)} MB of ${countOf(names.length, "module")} that are filled at the same time wait in a rank's buffers: ` +
      `${joinNames(names)}. Send tensors grouped by module to avoid it.`,
    details: { ranks: [pushes.by.rank], bytes, modules: names.slice(0, 100), module_count: names.length },
  };
  intake.warned = true; // at once: another bucket may be taken meanwhile
  await pushes.warn(owner, warning).catch((error: unknown) => {
    intake.warned = false;
    throw error;
  });
}
