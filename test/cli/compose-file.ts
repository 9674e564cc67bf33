// docker-compose.yml and the Dockerfiles as values, for the tests that check and run their commands.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { packageRoot } from "../../orchestrator/host/package-root.js";

export interface Service {
  image?: string;
  build?: { context: string; dockerfile: string };
  command: string[];
  environment?: Record<string, string>;
  volumes: string[];
  healthcheck?: { test: string[] };
}

export interface ComposeFile {
  services: Record<"redis" | "orchestrator" | "worker-0" | "worker-1", Service>;
  volumes: Record<string, unknown>;
}

export function readComposeFile(): ComposeFile {
  const text = readFileSync(join(packageRoot(), "docker-compose.yml"), "utf8");
  return parse(text, { merge: true }) as ComposeFile;
}

export interface Dockerfile {
  /** Of the last stage; each a list of words. */
  entrypoint: string[];
  command: string[];
  /** Words of each RUN, of all stages. */
  runs: string[];
  /** Of the last stage. */
  healthcheck: string[];
  /** Paths under the build's folder that the last stage takes. */
  copied: string[];
}

export function readDockerfile(path: string): Dockerfile {
  const text = readFileSync(join(packageRoot(), path), "utf8");
  const lines = text.split("\n");
  const after = (word: string) =>
    lines.filter((line) => line.startsWith(`${word} `)).map((line) => line.slice(word.length + 1));
  const words = (word: string) => JSON.parse(after(word).at(-1) ?? "[]") as string[];
  const copied = after("COPY")
    .filter((rest) => rest.startsWith("--from=build"))
    .flatMap((rest) => rest.split(" ").slice(1, -1));
  return {
    entrypoint: words("ENTRYPOINT"),
    command: words("CMD"),
    runs: after("RUN"),
    healthcheck: JSON.parse(/^HEALTHCHECK [^\n]*\\\n *CMD (.*)$/m.exec(text)?.[1] ?? "[]") as string[],
    copied: copied.map((source) => source.replace(/^\/app\//, "")),
  };
}
