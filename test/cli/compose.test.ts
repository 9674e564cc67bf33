import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { EXIT } from "../../orchestrator/cli/command.js";
import { buildProgram } from "../../orchestrator/cli/program.js";
import { readConfig } from "../../orchestrator/host/config.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { openRegisteredFile, rankDirectory } from "../../worker/registered-file.js";
import { SILENT_TERMINAL } from "./captured.js";
import { readComposeFile, readDockerfile, type Service } from "./compose-file.js";

const { services, volumes } = readComposeFile();
const DOCKERFILES = ["deploy/orchestrator.Dockerfile", "deploy/worker.Dockerfile"];

/** The options that the real parser makes of a command line, which is not run. */
function parseCommand(words: string[]): Record<string, unknown> {
  const program = buildProgram({ terminal: SILENT_TERMINAL, exitCode: EXIT.ok });
  const command = program.commands.find((one) => one.name() === words[0]);
  let options: Record<string, unknown> | null = null;
  command?.action(() => {
    options = command.opts();
  });
  program.parse(words, { from: "user" });
  if (options === null) throw new Error(`no command '${words[0]}'`);
  return options;
}

const mounts = (service: Service) =>
  service.volumes.map((volume) => volume.replace(/^\$\{[^}]*\}/, "checkpoints").split(":"));

describe("docker-compose.yml", () => {
  it("runs an orchestrator that listens for other containers, so with a token, on the mounted checkpoints", () => {
    const { command, environment = {} } = services.orchestrator;
    const options = parseCommand(command);
    const config = readConfig(options, { REDIS_URL: environment.REDIS_URL, LAYERCAST_TOKEN: "given" });
    expect(config).toMatchObject({ host: "0.0.0.0", port: 8600, sourceRoots: ["/checkpoints"] });
    expect(() => readConfig(options, { REDIS_URL: environment.REDIS_URL })).toThrow(/without a token/);
    expect(environment.LAYERCAST_TOKEN).toMatch(/^\$\{LAYERCAST_TOKEN:\?/); // compose refuses to start without
    expect(mounts(services.orchestrator)).toContainEqual(["checkpoints", "/checkpoints", "ro"]);
  });

  it("keeps the buckets of pushes on a volume that the ranks see under the same path", () => {
    const { spoolDirectory } = readConfig(parseCommand(services.orchestrator.command), {
      REDIS_URL: services.orchestrator.environment?.REDIS_URL,
      LAYERCAST_TOKEN: "given",
    });
    expect(mounts(services.orchestrator)).toContainEqual(["spool", spoolDirectory]);
    for (const worker of [services["worker-0"], services["worker-1"]])
      expect(mounts(worker)).toContainEqual(["spool", spoolDirectory, "ro"]);
  });

  it("runs the two ranks of one replica, their arenas on a volume, the checkpoints where the orchestrator sees them", () => {
    const workers = [services["worker-0"], services["worker-1"]];
    for (const [rank, worker] of workers.entries()) {
      const options = parseCommand(worker.command);
      expect(options).toMatchObject({
        fleet: "default",
        replica: 0,
        replicas: 1,
        rank,
        tp: workers.length,
        device: "cpu",
      });
      expect(mounts(worker)).toContainEqual(["arenas", options.runDir]);
      expect(mounts(worker)).toContainEqual(["checkpoints", "/checkpoints", "ro"]);
      expect(worker.environment?.REDIS_URL).toBe(services.orchestrator.environment?.REDIS_URL);
    }
  });

  it("holds a worker for healthy while its own rank's file is fresh, not for what another process or rank left", () => {
    const root = mkdtempSync(join(tmpdir(), "health-"));
    for (const rank of [0, 1] as const) {
      const [, script = ""] = services[`worker-${rank}`].healthcheck?.test ?? [];
      const isHealthy = () =>
        spawnSync("sh", ["-c", script.replaceAll("$$", "$").replaceAll("/var/lib/layercast", root)]).status === 0;
      const place = { runDir: root, fleet: "default", replica: 0, rank };
      expect(isHealthy()).toBe(false); // nothing is there yet, or only the other rank's
      mkdirSync(rankDirectory(place), { recursive: true });
      writeFileSync(join(rankDirectory(place), "lock"), "");
      expect(isHealthy()).toBe(false); // it waits for Redis, or for its fleet
      const file = openRegisteredFile(place);
      file.touch();
      expect(isHealthy()).toBe(true);
      const longAgo = Date.now() / 1_000 - 20;
      utimesSync(join(rankDirectory(place), "registered"), longAgo, longAgo);
      expect(isHealthy()).toBe(false);
      file.touch();
      expect(isHealthy()).toBe(true);
      if (rank === 0) file.remove();
    }
    rmSync(root, { recursive: true });
  });

  it("runs a Redis that keeps an append-only file on a volume and evicts nothing", () => {
    const words = services.redis.command.join(" ");
    expect(words).toMatch(/^redis-server /);
    for (const setting of ["--appendonly yes", "--maxmemory-policy noeviction"]) expect(words).toContain(setting);
    expect(mounts(services.redis)).toEqual([["redis", "/data"]]);
  });

  it("names only volumes and Dockerfiles that there are", () => {
    for (const service of Object.values(services)) {
      for (const [source = ""] of mounts(service)) expect([...Object.keys(volumes), "checkpoints"]).toContain(source);
      if (service.build !== undefined) expect(DOCKERFILES).toContain(service.build.dockerfile);
    }
  });
});

describe("the worker's image", () => {
  it("is built by the script that `npm test` ran before this test", () => {
    expect(readDockerfile("deploy/worker.Dockerfile").runs[0]).toBe("bash deploy/setup.sh");
  });
});

describe.each(DOCKERFILES)("%s", (path) => {
  const dockerfile = readDockerfile(path);

  it("takes along no compiler and no test, and says whether it is healthy", () => {
    expect(dockerfile.runs).toContain("npm prune --ignore-scripts --omit=dev --omit=optional");
    for (const file of dockerfile.copied) expect(file).not.toMatch(/^(?:dist|native\/(?:build|src)|test)(?:$|\/test)/);
    expect(dockerfile.healthcheck.length).toBeGreaterThan(0);
  });

  it("starts the built command line with options that it knows", () => {
    expect(dockerfile.entrypoint).toEqual(["node", "dist/orchestrator/cli/main.js"]);
    expect(parseCommand(dockerfile.command)).toBeTypeOf("object");
  });

  it("takes along only what the set-up has made or the repository holds", () => {
    for (const file of dockerfile.copied) expect(existsSync(join(packageRoot(), file)), file).toBe(true);
  });
});
