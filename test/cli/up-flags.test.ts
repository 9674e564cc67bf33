// `layercast up` starts an orchestrator and workers: what a user may set of those, a user of `up` may set too.

import { describe, expect, it } from "vitest";
import { EXIT } from "../../orchestrator/cli/command.js";
import { orchestratorArgs, workerArgs } from "../../orchestrator/cli/local/local-fleet.js";
import { buildProgram } from "../../orchestrator/cli/program.js";
import { readConfig } from "../../orchestrator/host/config.js";
import { SILENT_TERMINAL } from "./captured.js";

const program = buildProgram({ terminal: SILENT_TERMINAL, exitCode: EXIT.ok });
const flagsOf = (name: string) =>
  program.commands.find((command) => command.name() === name)?.options.map(({ long }) => long ?? "") ?? [];
const flagsIn = (args: string[]) => args.filter((word) => word.startsWith("--"));

/** Reach the parts by the environment, where `up` puts them. */
const BY_ENVIRONMENT = ["--file-mode", "--log-level"];
/** What `up` decides, or has no flag for, and why. */
const NOT_OF_UP: Readonly<Record<string, string>> = {
  "--host": "it is for one machine, and speaks to its orchestrator on loopback",
  "--spool-dir": "a part of its run directory",
  "--token-file": "LAYERCAST_TOKEN_FILE says it to `up`, which needs the token too, and to its orchestrator",
  "--replica": "of one worker",
  "--rank": "of one worker",
  "--take-over": "the run directory is its own",
};

const ALL = {
  fleet: "f",
  replicas: 2,
  tp: 2,
  ep: true,
  device: "cpu",
  sourceRoots: ["/a", "/b"],
  hookHosts: ["h", "*.i"],
};

describe("layercast up", () => {
  it.each(["orchestrator", "worker"])("has each flag of its %s, or a reason not to", (part) => {
    const flags = flagsOf(part);
    expect(flags.length).toBeGreaterThan(5);
    expect(flags.filter((flag) => !flagsOf("up").includes(flag) && NOT_OF_UP[flag] === undefined)).toEqual([]);
  });

  it("passes all of them on, but what goes by the environment", () => {
    const passed = [...flagsIn(orchestratorArgs(ALL, "/run", 1)), ...flagsIn(workerArgs(ALL, "/run", 1, 1))];
    const needed = [...flagsOf("orchestrator"), ...flagsOf("worker")].filter((flag) => flag !== "--token-file");
    expect([...new Set([...passed, ...BY_ENVIRONMENT])].sort()).toEqual([...new Set(needed)].sort());
  });

  it("has no reason left for a flag that it has, or that no part has", () => {
    const parts = [...flagsOf("orchestrator"), ...flagsOf("worker")];
    for (const flag of Object.keys(NOT_OF_UP)) {
      expect(parts).toContain(flag);
      expect(flagsOf("up")).not.toContain(flag);
    }
  });

  it("gives its orchestrator the hosts of hooks, so that it takes them as its own", () => {
    const orchestrator = program.commands.find((command) => command.name() === "orchestrator");
    let options = {};
    orchestrator?.action(() => {
      options = orchestrator.opts();
    });
    program.parse(orchestratorArgs(ALL, "/run", 1), { from: "user" });
    const env = { REDIS_URL: "redis://localhost", LAYERCAST_HOOK_HOSTS: "other" };
    expect(readConfig(options, env)).toMatchObject({ hookHosts: ["h", "*.i"], sourceRoots: ["/a", "/b"] });
    expect(orchestratorArgs({ sourceRoots: [] }, "/run", 1)).not.toContain("--hook-host");
  });
});
