// Who may import whom (docs/architecture.md): contract <- checkpoint <- planner <- reloads -> queue, routes -> reloads,
// main -> server -> routes; the worker knows the contract, the planner, the native bridge and the protocol; the CLI speaks HTTP.

const own = "^(orchestrator|worker|native|test)/";

/** Modules of `from` may import, of our own code, only `allowed`. */
const only = (name, from, allowed, comment, except = []) => ({
  name,
  comment,
  severity: "error",
  from: { path: from, pathNot: except },
  to: { path: own, pathNot: allowed },
});

const contract = "^orchestrator/contract/";
const atoms = [contract, "^orchestrator/(fault-point|file-mode)\\.ts$"];

module.exports = {
  forbidden: [
    { name: "no-cycles", severity: "error", from: {}, to: { circular: true } },
    { name: "not-found", severity: "error", from: {}, to: { couldNotResolve: true } },
    only("contract-stands-alone", "^orchestrator/contract/", [contract], "both sides share it"),
    only("native-stands-alone", "^native/", ["^native/"], "the bridge imports nothing of ours"),
    only(
      "checkpoint",
      "^orchestrator/checkpoint/",
      [...atoms, "^orchestrator/checkpoint/"],
      "bytes of headers -> tables",
    ),
    only(
      "planner-is-pure",
      "^orchestrator/planner/",
      [contract, "^orchestrator/(checkpoint|planner)/", "^native/native\\.ts$"],
      "no Redis, no routes; from the bridge the rows of a program",
    ),
    {
      name: "planner-does-no-io",
      severity: "error",
      from: { path: "^orchestrator/planner/" },
      to: { dependencyTypes: ["core", "npm"], pathNot: ["^(node:)?crypto$"] },
    },
    only(
      "queue",
      "^orchestrator/queue/",
      [...atoms, "^orchestrator/queue/", "^orchestrator/redis-trouble\\.ts$"],
      "moves jobs, knows no reload",
    ),
    only(
      "reloads",
      "^orchestrator/reloads/",
      [...atoms, "^orchestrator/(checkpoint|planner|queue|reloads)/", "^orchestrator/redis\\.ts$"],
      "below the routes",
    ),
    only(
      "routes",
      "^orchestrator/routes/",
      [
        contract,
        "^orchestrator/(routes|reloads)/",
        "^orchestrator/(config|metrics|package-root|redis-trouble|version)\\.ts$",
      ],
      "parse, call, reply",
    ),
    only(
      "worker",
      "^worker/",
      [
        ...atoms,
        "^(worker|native)/",
        "^orchestrator/(planner|queue)/",
        "^orchestrator/reloads/(protocol/|(event|fleet|plan|record|push/session)-store\\.ts$)",
        "^orchestrator/(config|log|redis(-start)?|version)\\.ts$",
        // Whether a source file is still the planned one is decided by the same lines on both sides.
        "^orchestrator/checkpoint/",
      ],
      "it meets the orchestrator in Redis, not in code",
    ),
    only(
      "cli-speaks-http",
      "^orchestrator/cli/",
      [
        contract,
        "^orchestrator/(checkpoint|cli)/",
        "^orchestrator/(config|file-mode|owned-process|package-root|token|version|redis(-notices|-server|-start|-trouble)?)\\.ts$",
        "^native/native\\.ts$",
      ],
      "`push` reads a checkpoint as a trainer would; `up` and `demo` start processes, and look whether the core is there first",
      ["^orchestrator/cli/(orchestrator|worker)\\.ts$"],
    ),
    only(
      "cli-starts-servers",
      "^orchestrator/cli/(orchestrator|worker)\\.ts$",
      [contract, "^orchestrator/cli/", "^orchestrator/(main|config|file-mode)\\.ts$", "^worker/main\\.ts$"],
      "the two commands that are a server",
    ),
    {
      name: "bullmq-in-queue-and-worker",
      severity: "error",
      from: { path: own, pathNot: ["^orchestrator/queue/", "^worker/", "^test/"] },
      to: { path: "node_modules/bullmq" },
    },
    {
      name: "nothing-imports-tests",
      severity: "error",
      from: { path: "^(orchestrator|worker|native)/" },
      to: { path: "^test/" },
    },
    {
      name: "no-undeclared-packages",
      severity: "error",
      from: { path: "^(orchestrator|worker|native)/" },
      to: { dependencyTypes: ["npm-dev", "npm-no-pkg", "npm-unknown"] },
    },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    exclude: { path: ["^native/build", "^dist/", "^test/fixtures/checkpoints/"] },
    tsConfig: { fileName: "tsconfig.json" },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: { exportsFields: ["exports"], conditionNames: ["import", "node", "types"] },
  },
};
