// A rank's standing memory: the control page, the live file behind it, and, while a reload needs another layout, the arena
// that will take its place. Decides nothing about who may write; see staging.ts.

import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Arena, Control, ControlPage, Half, NativeCore } from "../native/native.js";
import type { ArenaLayout, Layout } from "../orchestrator/contract/plan.js";
import { layoutArena } from "../orchestrator/planner/arena-layout.js";
import type { Held, LiveArena } from "../orchestrator/reloads/protocol/state.js";

export interface StandingArena {
  arena: Arena;
  /** 32 hex digits; a consumer that sees another one must attach again. */
  id: string;
  layoutDigest: string;
  layout: ArenaLayout;
}

/** Where a reload's bytes are written before its swap. */
export interface Destination {
  target: StandingArena;
  half: Half;
  /** `staging`: exchanged at the swap. `live`: written in place. `next`: an arena that is not live yet takes over. */
  mode: "staging" | "live" | "next";
}

export interface RankArena {
  readonly livePath: string;
  readonly controlPath: string;
  readonly exportDirectory: string;
  page(): ControlPage;
  /** As the fleet is told. */
  liveState(): LiveArena;
  standing(): StandingArena | null;
  beginSwap(epoch: number, reload: string): void;
  endSwap(standing: StandingArena, held: Held, digest: string): void;
  /** Makes ready a place for bytes of this layout. */
  makeDestination(layout: Layout, layoutDigest: string, mode: "staged" | "in_place"): Destination;
  /** `next` becomes the standing arena, under the live file's name. */
  takeOver(next: StandingArena): void;
  close(): void;
}

export interface RankArenaOptions {
  core: NativeCore;
  directory: string;
  /** Fills staging with a pattern before each use, so that a byte left unwritten shows. */
  poison: boolean;
  /** The layout of the arena that the control page names, if it is still known. */
  findLayout: (digest: string) => Promise<Layout | null>;
  files: Files;
}

/** What is done to files beside the core's own work on them. */
export interface Files {
  exists(path: string): boolean;
  makeDirectory(path: string): void;
  rename(from: string, to: string): void;
  remove(path: string): void;
}

export const HOST_FILES: Files = {
  exists: existsSync,
  makeDirectory: (path) => void mkdirSync(path, { recursive: true }),
  rename: renameSync,
  remove: (path) => rmSync(path, { force: true }),
};

export async function openRankArena(options: RankArenaOptions): Promise<RankArena> {
  const { core, directory, poison, files } = options;
  const livePath = join(directory, "live.safetensors");
  const nextPath = join(directory, "next.safetensors");
  const controlPath = join(directory, "control");
  const exportDirectory = join(directory, "exports");
  files.makeDirectory(exportDirectory);
  files.remove(nextPath);
  const control = core.openControl(controlPath);
  let standing = await attachStanding(options, control, livePath);
  let next: StandingArena | null = null;

  function createNext(layout: Layout, layoutDigest: string): StandingArena {
    if (next !== null) core.closeArena(next.arena);
    next = null;
    const planned = layoutArena(layout);
    const { headerBytes, dataBytes } = planned;
    const arena = core.openArena({ path: nextPath, mode: "create", headerBytes, dataBytes });
    next = { arena, id: randomBytes(16).toString("hex"), layoutDigest, layout: planned };
    return next;
  }

  return {
    livePath,
    controlPath,
    exportDirectory,
    page: () => core.readControl(control),
    liveState: () => liveStateOf(core.readControl(control), standing !== null),
    standing: () => standing,
    beginSwap: (epoch, reload) => core.beginSwap(control, epoch, reload),
    endSwap(arena, held, digest) {
      const { headerBytes, dataBytes } = arena.layout;
      core.endSwap(control, {
        ...held,
        arenaId: arena.id,
        digest,
        dataOffset: headerBytes.byteLength,
        dataBytes,
      });
    },
    makeDestination(layout, layoutDigest, mode) {
      if (standing === null || standing.layoutDigest !== layoutDigest) {
        return { target: createNext(layout, layoutDigest), half: "live", mode: "next" };
      }
      const { state } = core.readControl(control);
      if (mode === "in_place" || state !== "live") return { target: standing, half: "live", mode: "live" };
      core.openStaging(standing.arena, poison);
      return { target: standing, half: "staging", mode: "staging" };
    },
    takeOver(taking) {
      if (standing !== null) core.closeArena(standing.arena);
      files.rename(nextPath, livePath);
      standing = taking;
      next = null;
    },
    close() {
      if (next !== null) core.closeArena(next.arena);
      if (standing !== null) core.closeArena(standing.arena);
      core.closeControl(control);
    },
  };
}

/** The live file that an earlier process of this rank left, if it is what the control page says; else none. */
async function attachStanding(
  { core, files, findLayout }: RankArenaOptions,
  control: Control,
  path: string,
): Promise<StandingArena | null> {
  const page = core.readControl(control);
  if (page.state === "empty" || !files.exists(path)) return null;
  const layout = await findLayout(page.layoutDigest);
  if (layout === null) return null;
  const planned = layoutArena(layout);
  try {
    const arena = core.openArena({
      path,
      mode: "attach",
      headerBytes: planned.headerBytes,
      dataBytes: planned.dataBytes,
    });
    return { arena, id: page.arenaId, layoutDigest: page.layoutDigest, layout: planned };
  } catch {
    return null; // not that arena's file: it is laid out anew by the next load
  }
}

function liveStateOf(page: ControlPage, attached: boolean): LiveArena {
  const { generation, reload, content, weightVersion, epoch, layoutDigest } = page;
  if (!attached || page.state === "empty") return { state: "empty", generation, held: null };
  const held = { reload, content, weightVersion, epoch, layoutDigest };
  // A torn arena still says what it was being swapped to, but nothing vouches for its bytes.
  return { state: page.state, generation, held: page.state === "live" ? held : null };
}
