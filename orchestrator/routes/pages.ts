// The dashboard's static files. They are served from the package's source folder, where they lie whether this runs
// from source or from dist/.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Type } from "typebox";
import { LayercastError } from "../contract/errors.js";
import { packageRoot } from "../host/package-root.js";
import type { App } from "./app.js";

const MODULES = [
  ...["dashboard.js", "events.js", "store.js", "list.js", "words.js", "nodes.js", "patch.js"],
  ...["draw-fleets.js", "draw-list.js", "draw-page.js", "draw-reload.js"],
];

const CONTENT_TYPES: Record<string, string> = {
  "index.html": "text/html; charset=utf-8",
  ...Object.fromEntries(MODULES.map((name) => [name, "text/javascript; charset=utf-8"])),
  "dashboard.css": "text/css; charset=utf-8",
};

const SECURITY_HEADERS = {
  "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-cache",
};

export async function addPages(app: App): Promise<void> {
  const folder = join(packageRoot(), "orchestrator", "dashboard");
  const files = new Map<string, { body: Buffer; contentType: string }>();
  for (const [name, contentType] of Object.entries(CONTENT_TYPES)) {
    files.set(name, { body: await readFile(join(folder, name)), contentType });
  }
  const page = (name: string) => {
    const file = files.get(name);
    if (file !== undefined) return file;
    throw new LayercastError("not_found", `the dashboard has no file '${name}'; it begins at /`);
  };
  const hidden = { hide: true };
  app.get("/", { schema: hidden }, async (_request, reply) => {
    const { body, contentType } = page("index.html");
    return reply.headers(SECURITY_HEADERS).type(contentType).send(body);
  });
  app.get(
    "/dashboard/:file",
    { schema: { ...hidden, params: Type.Object({ file: Type.String() }) } },
    async (request, reply) => {
      const { body, contentType } = page(request.params.file);
      return reply.headers(SECURITY_HEADERS).type(contentType).send(body);
    },
  );
}
