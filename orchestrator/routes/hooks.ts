// The routes of a fleet's hooks: what engines are asked before live bytes change, and after.

import { HooksAnswer, HooksBody } from "../contract/hooks.js";
import type { App, RouteDeps } from "./app.js";
import { FleetParams, problems, ref } from "./schemas.js";

const tags = ["fleets"];

export function addHookRoutes(app: App, { reloads }: RouteDeps): void {
  const set = {
    operationId: "setHooks",
    tags,
    summary: "Say how the fleet's engines are paused and resumed",
    description:
      "Either `pause` and `resume` written out, or a `preset` with its engine's `url`. They hold from the next stop on, and " +
      "replace those before. The fleet may still be without workers; how many urls there are is then not checked.",
    params: FleetParams,
    body: ref(HooksBody),
    response: { 200: ref(HooksAnswer), ...problems("invalid_request") },
  };
  app.put("/v1/fleets/:fleet/hooks", { schema: set }, async (request) =>
    reloads.setHooks(request.params.fleet, request.body),
  );

  const get = {
    operationId: "getHooks",
    tags,
    summary: "Read the fleet's hooks, presets written out",
    params: FleetParams,
    response: { 200: ref(HooksAnswer), ...problems("invalid_request", "not_found") },
  };
  app.get("/v1/fleets/:fleet/hooks", { schema: get }, async (request) => reloads.hooks(request.params.fleet));

  const clear = {
    operationId: "clearHooks",
    tags,
    summary: "Let ranks swap without asking the engines",
    description: "A resume that fails meanwhile is given up. A fleet without hooks answers the same.",
    params: FleetParams,
    response: {
      204: { type: "null", description: "The fleet has no hooks" },
      ...problems("invalid_request", "not_found"),
    },
  };
  app.delete("/v1/fleets/:fleet/hooks", { schema: clear }, async (request, reply) => {
    await reloads.clearHooks(request.params.fleet);
    return reply.code(204).send(null);
  });
}
