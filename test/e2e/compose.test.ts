// The commands of docker-compose.yml, run here with this machine's ports and folders in place of the containers'.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { createClient } from "../../orchestrator/cli/http-client.js";
import { endProcess, spawnOwned } from "../../orchestrator/cli/local/owned-process.js";
import { packageRoot } from "../../orchestrator/host/package-root.js";
import { readComposeFile, readDockerfile, type Service } from "../cli/compose-file.js";

const { services } = readComposeFile();
const TOKEN = "compose-test-token";
const END_GRACE_MS = 10_000;

let scratch: string;
let place: (text: string) => string;
let apiPort: number;
const processes: ChildProcess[] = [];

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "layercast-compose-"));
  for (const folder of ["data", "arenas", "spool"]) mkdirSync(join(scratch, folder));
  cpSync(join(packageRoot(), "test/fixtures/checkpoints"), join(scratch, "checkpoints"), { recursive: true });
  const redisPort = await freePort();
  apiPort = await freePort();
  place = (text) =>
    text
      .replace("redis://redis:6379", `redis://127.0.0.1:${redisPort}`)
      .replace("8600", String(apiPort))
      .replace(/^0\.0\.0\.0$/, "127.0.0.1")
      .replace(/^\/checkpoints/, join(scratch, "checkpoints"))
      .replace(/^\/spool/, join(scratch, "spool"))
      .replace("/var/lib/layercast", join(scratch, "arenas"));
  start(services.redis.command, ["--port", String(redisPort), "--bind", "127.0.0.1"], {}, join(scratch, "data"));
  for (const name of ["orchestrator", "worker-0", "worker-1"] as const) startService(services[name]);
});
afterAll(async () => {
  for (const child of processes.reverse()) await endProcess(child, END_GRACE_MS);
  rmSync(scratch, { recursive: true, force: true });
});

/** In a folder that holds what the image holds. */
function startService(service: Service): void {
  const dockerfile = readDockerfile(service.build?.dockerfile ?? "");
  const image = mkdtempSync(join(scratch, "image-"));
  for (const file of dockerfile.copied) {
    mkdirSync(join(image, file, ".."), { recursive: true });
    // The modules are many and Node would look for them beside the link's target all the same.
    if (file === "node_modules") symlinkSync(join(packageRoot(), file), join(image, file));
    else cpSync(join(packageRoot(), file), join(image, file), { recursive: true });
  }
  const environment = { REDIS_URL: place(service.environment?.REDIS_URL ?? ""), LAYERCAST_TOKEN: TOKEN };
  start([...dockerfile.entrypoint, ...service.command.map(place)], [], environment, image);
}

function start(words: string[], more: string[], environment: Record<string, string>, cwd: string): void {
  const [command = "", ...args] = [...words, ...more];
  processes.push(spawnOwned(command, args, { env: { ...process.env, ...environment }, cwd, stdio: "ignore" }));
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

async function eventually<Value>(ask: () => Promise<Value | null>): Promise<Value> {
  while (true) {
    const value = await ask().catch(() => null);
    if (value !== null) return value;
    await sleep(20);
  }
}

/** The health check's exit code, as the container's engine would see it. */
function health(name: "orchestrator" | "worker-0" | "worker-1"): Promise<number | null> {
  const [kind, ...words] = services[name].healthcheck?.test ?? [];
  const shell = kind === "CMD-SHELL" ? ["sh", "-c"] : [];
  const [command = "", ...args] = [...shell, ...words.map((word) => place(word.replaceAll("$$", "$")))];
  const child = spawn(command, args, { stdio: "ignore" });
  return new Promise((resolve) => child.once("exit", resolve));
}

it("brings a fleet up that is healthy and commits a checkpoint from the volume", async () => {
  expect(await eventually(async () => ((await health("orchestrator")) === 0 ? 0 : null))).toBe(0);
  const url = `http://127.0.0.1:${apiPort}`;
  await expect(createClient(url, null).fleets()).rejects.toMatchObject({ code: "unauthorized" });
  const fleet = await eventually(async () => {
    const found = await createClient(url, TOKEN).fleet("default");
    return found.ranks.length === 2 && found.ranks.every((rank) => rank.alive) ? found : null;
  });
  expect(fleet).toMatchObject({ replicas: 1, tensor_parallel_size: 2 });
  for (const worker of ["worker-0", "worker-1"] as const)
    expect(await eventually(async () => ((await health(worker)) === 0 ? 0 : null))).toBe(0);
  const source = place("/checkpoints/tiny-qwen3/v1");
  const cli = [
    join(packageRoot(), "dist/orchestrator/cli/main.js"),
    "submit",
    "--url",
    url,
    "--source",
    source,
    "--json",
  ];
  const output = execFileSync(process.execPath, [...cli, "--recipe", "fp8-block"], {
    encoding: "utf8",
    env: { ...process.env, LAYERCAST_TOKEN: TOKEN },
  });
  expect(JSON.parse(output)).toMatchObject({ state: "committed", recipe: "fp8-block" });
});
