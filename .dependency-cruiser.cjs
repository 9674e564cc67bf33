// Who may import whom (docs/architecture.md): contract <- checkpoint <- planner <- reloads <- routes <- server <- main. Both the
// orchestrator and the worker know contract, checkpoint, program (plan -> numbers), fleet (the document) and host; the CLI speaks HTTP.

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
const atoms = [contract, "^orchestrator/host/(fault-point|file-mode)\\.ts$"];

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
      "program-is-pure",
      "^orchestrator/program/",
      [contract, "^orchestrator/program/", "^native/native\\.ts$"],
      "plan -> numbers, for both sides; from the bridge the rows of a program",
    ),
    only(
      "planner-is-pure",
      "^orchestrator/planner/",
      [contract, "^orchestrator/(checkpoint|planner|program)/", "^native/native\\.ts$"],
      "names -> plan; no Redis, no routes",
    ),
    {
      name: "planner-does-no-io",
      severity: "error",
      from: { path: "^orchestrator/(planner|program)/" },
      to: { dependencyTypes: ["core", "npm"], pathNot: ["^(node:)?crypto$"] },
    },
    only("host", "^orchestrator/host/", [contract, "^orchestrator/host/"], "what a process stands on; knows no reload"),
    only(
      "fleet",
      "^orchestrator/fleet/",
      [contract, "^orchestrator/(fleet|program)/"],
      "the document and the stores beside it, for both sides",
    ),
    only(
      "queue",
      "^orchestrator/queue/",
      [...atoms, "^orchestrator/queue/", "^orchestrator/host/redis-trouble\\.ts$"],
      "moves jobs, knows no reload",
    ),
    only(
      "reloads",
      "^orchestrator/reloads/",
      [...atoms, "^orchestrator/(checkpoint|planner|program|fleet|queue|reloads)/", "^orchestrator/host/redis\\.ts$"],
      "below the routes",
    ),
    only(
      "routes",
      "^orchestrator/routes/",
      [contract, "^orchestrator/(routes|reloads|host)/", "^orchestrator/metrics\\.ts$"],
      "parse, call, reply",
    ),
    only(
      "worker",
      "^worker/",
      [contract, "^(worker|native)/", "^orchestrator/(checkpoint|program|fleet|queue|host)/"],
      "it meets the orchestrator in Redis, not in code",
    ),
    only(
      "cli-speaks-http",
      "^orchestrator/cli/",
      [contract, "^orchestrator/(checkpoint|cli|host)/", "^native/native\\.ts$"],
      "`push` reads a checkpoint as a trainer would; `up` and `demo` start processes, and look whether the core is there first",
      ["^orchestrator/cli/(orchestrator|worker)\\.ts$"],
    ),
    only(
      "cli-starts-servers",
      "^orchestrator/cli/(orchestrator|worker)\\.ts$",
      [contract, "^orchestrator/(cli|host)/", "^orchestrator/main\\.ts$", "^worker/main\\.ts$"],
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
