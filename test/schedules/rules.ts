// The protocol's rules, each with the change of the sources that switches it off. The schedules must then find something
// wrong; a rule that they do not miss is either not needed or not tested. Two are missed too seldom to wait for: that a hook call
// speaks for its own stop only, and that a rank's engines outlive its worker. Without them laws of test/reloads/hooks.test.ts and
// test/fleet/engine-leases.test.ts fail. One they cannot miss, as each rank of theirs has
// one arena: that a worker with another does not displace a living one (P9). Laws of test/worker/heartbeat.test.ts fail without it. Nor
// that all ranks of a replica let an engine in (P14): without it an engine gives up its start, and all goes on later. A law of
// test/fleet/engine-leases.test.ts fails.

import type { Patch } from "../compile.js";

export interface Rule {
  name: string;
  /** What the rule says. */
  law: string;
  patches: Patch[];
  /** It takes some hundreds of schedules and more: only `npm run test:deep` waits for that. */
  isSeldomMissed?: true;
}

const PROTOCOL = "orchestrator/fleet";
const RELOADS = `${PROTOCOL}/reload-transitions.ts`;
const RANKS = `${PROTOCOL}/rank-transitions.ts`;
const ENGINES = `${PROTOCOL}/engine-transitions.ts`;
const STATE = `${PROTOCOL}/state.ts`;
const ADVANCE = `${PROTOCOL}/advance.ts`;
const LEDGER = "worker/ledger.ts";
const STAGING = "worker/staging.ts";
const DRIVER = "orchestrator/reloads/drive-fleet.ts";

function rule(name: string, law: string, file: string, find: string, put: string): Rule {
  return { name, law, patches: [{ file, find, put }] };
}

function seldom(one: Rule): Rule {
  return { ...one, isSeldomMissed: true };
}

export const RULES: readonly Rule[] = [
  rule("P1", "one reload at a time", RELOADS, "next === null || state.active !== null ||", "next === null ||"),
  {
    name: "P1, P6",
    law: "late jobs are fenced, by the fleet's word and by the epoch in the ledger; either covers the other",
    patches: [
      { file: LEDGER, find: "if (epoch >= ledger.highestEpoch) return;", put: "return;" },
      {
        file: "worker/run-job.ts",
        find: "if (active === null || active.id !== job.reload || active.epoch !== job.epoch) return null;",
        put: "if (active === null) return null;",
      },
    ],
  },
  seldom(
    rule(
      "P2",
      "opening and swapping wait for writes in flight",
      STAGING,
      "before.then(() => work.drained()).then(run)",
      "before.then(run)",
    ),
  ),
  {
    name: "P2",
    law: "a write begins only while the gate is open, and only for the owner; either covers the other",
    patches: [
      {
        file: LEDGER,
        find: 'if (staging.kind === "open" && isOwner(staging, owner)) return staging;',
        put: 'if (staging.kind === "open") return staging;',
      },
      { file: LEDGER, find: "if (epoch >= ledger.highestEpoch) return;", put: "return;" },
      { file: STAGING, find: "    await gateOpen();\n", put: "" },
    ],
  },
  rule(
    "P3",
    "the decision needs every token",
    RELOADS,
    'if (record.state !== "finalizing" || waiting.length > 0) {',
    'if (record.state !== "finalizing") {',
  ),
  rule(
    "P3",
    "a token counts for its own incarnation only",
    RELOADS,
    "      token.incarnation !== rank.incarnation ||\n",
    "",
  ),
  rule(
    "P3",
    "after the decision nothing ends a reload but its commit",
    RELOADS,
    'return record.state === "committing" || record.times.signalled !== null;',
    "return false;",
  ),
  rule(
    "P3",
    "the decision is on disk before anything follows it",
    "orchestrator/reloads/enqueue-reload.ts",
    "  await deps.disk.wait();\n  const { state }",
    "  const { state }",
  ),
  {
    name: "P4",
    law: "a swap done twice is done once: the page shows it, and staging is no longer prepared; either covers the other",
    patches: [
      {
        file: "worker/make-live.ts",
        find: "if (isLive({ live: rank.arena.liveState() }, held)) {",
        put: "if (false) {",
      },
      {
        file: "worker/make-live.ts",
        find: "if (rank.staging.prepared(owner) === null) await prepareReload(loading);",
        put: "",
      },
      {
        file: LEDGER,
        find: 'if (staging.kind === "prepared" && isOwner(staging, owner) && staging.generation === generation) return staging;',
        put: "return staging as never;",
      },
    ],
  },
  rule(
    "P4",
    "no rank swaps before the signal",
    "worker/catch-up.ts",
    "return active.times.signalled !== null;",
    "return true;",
  ),
  rule(
    "P5",
    "committed needs every rank to show it",
    RELOADS,
    "if (missingRanks(state, context).length > 0 || !allLive(state, heldBy(record))) return null;",
    "if (missingRanks(state, context).length > 0) return null;",
  ),
  rule(
    "P6",
    "a new incarnation is sent jobs of its own",
    ADVANCE,
    "record.enqueued[key] !== rank.incarnation",
    "record.enqueued[key] === undefined",
  ),
  rule(
    "P7",
    "the sweep does what an orchestrator that died has left",
    DRIVER,
    "for (const fleet of await deps.store.fleets()) drive(fleet, null, true);",
    "",
  ),
  rule(
    "P8",
    "the fleet is routable only when all hold what is committed",
    ADVANCE,
    "(key) => !shows(state, key, committed)",
    "(key) => state.ranks[key] === undefined",
  ),
  rule(
    "P8",
    "who joins a commit loads what was decided",
    "worker/catch-up.ts",
    'if (active?.state === "committing" && state.drained[replica] === undefined) return heldBy(active);',
    "",
  ),
  seldom(
    rule(
      "P9",
      "an arena has one process",
      "test/schedules/crew.ts",
      "if (before !== undefined) world.kill(before.process);",
      "",
    ),
  ),
  {
    name: "P9",
    law: "an odd page is torn",
    patches: [
      {
        file: "worker/rank-arena.ts",
        find: 'return { state: page.state, generation, held: page.state === "live" ? held : null };',
        put: 'return { state: "live", generation: generation + (generation % 2), held };',
      },
      {
        file: "worker/rank-arena.ts",
        find: 'if (mode === "in_place" || state !== "live")',
        put: 'if (mode === "in_place")',
      },
    ],
  },
  seldom(
    rule(
      "P10",
      "a rank reports what its page shows, also when the reload it swapped for has ended",
      "worker/heartbeat.ts",
      "if (known.state.active === null && isUntold(registered, rank.arena.liveState())) await tellArena(rank, null);",
      "",
    ),
  ),
  rule(
    "P10",
    "a failure that changed live bytes says so",
    RELOADS,
    "record.liveChanged = !record.inPlace || state.committed !== null;",
    "",
  ),
  rule("P10", "a torn fleet is not routable", RELOADS, "  if (record.liveChanged) tear(state, record, error);\n", ""),
  seldom(
    rule(
      "P10",
      "a torn fleet is whole again only with what was decided",
      `${PROTOCOL}/torn-fleet.ts`,
      "held.epoch !== state.tornEpoch",
      "false",
    ),
  ),
  rule("P10", "ranks that all hold what was decided are no torn fleet", ADVANCE, "  mendTorn(state, context);\n", ""),
  rule(
    "P11",
    "undo is adopted for the bytes that it holds",
    LEDGER,
    'if (staging.kind !== "undo" || staging.held.content !== owner.content) return null;',
    'if (staging.kind !== "undo") return null;',
  ),
  rule(
    "P12",
    "live bytes change after the pause",
    RELOADS,
    "  const { id: reload, epoch } = record;\n  state.engineStop",
    "  signal(state, record, now);\n  const { id: reload, epoch } = record;\n  state.engineStop",
  ),
  rule(
    "P12",
    "engines are resumed",
    ENGINES,
    'return engineStop.phase === "pausing" ? "pause" : "resume";',
    'return "pause";',
  ),
  rule(
    "P12",
    "one orchestrator calls at a time",
    ENGINES,
    "if (engineStop.caller !== null && now < engineStop.caller.until) return null;",
    "",
  ),
  seldom(
    rule(
      "P12",
      "a stop waits for the calls of the one before",
      RELOADS,
      "caller: state.engineStop?.caller ?? null,",
      "caller: null,",
    ),
  ),
  rule(
    "P12",
    "what was paused for a reload that failed is resumed",
    RELOADS,
    'if (isStopping(state, record) && state.engineStop !== null && !state.torn) state.engineStop.phase = "resuming";',
    "",
  ),
  rule(
    "P12",
    "a pause is on disk before it is called",
    "orchestrator/reloads/run-hooks.ts",
    'if (what === "pause" && !(await deps.disk.atOnce())) {',
    "if (false) {",
  ),
  seldom(
    rule(
      "P12",
      "a drained replica's engine is resumed too",
      "orchestrator/reloads/run-hooks.ts",
      'deps.callEngines(describe("resume", state, stop, true)).catch(() => {});',
      "",
    ),
  ),
  rule(
    "P13",
    "an epoch in a page was decided",
    RANKS,
    "if (rank.live.held !== null) recognize(state, rank.live, rank.live.held, context.now);",
    "",
  ),
  rule(
    "P13",
    "the fleet's epoch is the highest that any rank has seen",
    RANKS,
    "state.epoch = Math.max(state.epoch, highestEpoch);",
    "",
  ),
  seldom(
    rule(
      "P13",
      "ranks register again in a new life of Redis",
      STATE,
      "if (rank === undefined || rank.redisRunId !== context.redisRunId) return false;",
      "if (rank === undefined) return false;",
    ),
  ),
  seldom(
    rule(
      "P13",
      "a token counts in the life of Redis that it was handed in",
      RANKS,
      "  delete active.tokens[key];\n",
      "",
    ),
  ),
  seldom(
    rule(
      "P13",
      "a rank does not write in place again what it shows live, though Redis has forgotten it",
      STAGING,
      "if (!isLive({ live: arena.liveState() }, { content, epoch })) return;",
      "return;",
    ),
  ),
  rule(
    "P14",
    "a swap has the run lock alone",
    "worker/engines/run-lock.ts",
    'while (!core.tryLock(lock, "exclusive")) {',
    "while (false) {",
  ),
  {
    name: "P14",
    law: "nothing is decided while an engine starts; the step and the decision cover each other",
    patches: [
      { file: RELOADS, find: "  if (startingEngines(state).length > 0) return;\n", put: "" },
      { file: ADVANCE, find: " && startingEngines(state).length === 0;", put: ";" },
    ],
    isSeldomMissed: true,
  },
  seldom(
    rule(
      "P14",
      "what a worker has told of its engines holds, though Redis comes back with the worker before",
      RANKS,
      "const engines = told ?? before?.engines;",
      "const engines = before !== undefined && isNew ? before.engines : (told ?? undefined);",
    ),
  ),
  rule(
    "drain",
    "a drained replica joins again when it holds what is committed",
    `${PROTOCOL}/replica-transitions.ts`,
    "isThere(state, key, context) && shows(state, key, committed)",
    "isThere(state, key, context)",
  ),
];
