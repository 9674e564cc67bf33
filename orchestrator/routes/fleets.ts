// The routes of fleets: what they hold, whether to route to them, rollback, drained replicas.

import { Type } from "typebox";
import { FleetAnswer, FleetListAnswer, ReloadAnswer, RollbackBody, RoutableAnswer } from "../contract/reload.js";
import type { App, RouteDeps } from "./app.js";
import { addExportRoutes } from "./exports.js";
import { addHookRoutes } from "./hooks.js";
import { reloadPath } from "./reloads.js";
import { closed, FleetParams, problems, ReplicaParams, ref } from "./schemas.js";

const tags = ["fleets"];

export function addFleetRoutes(app: App, deps: RouteDeps): void {
  addRead(app, deps);
  addRoutable(app, deps);
  addRollback(app, deps);
  addHookRoutes(app, deps);
  addDrain(app, deps);
  addExportRoutes(app, deps);
}

function addRead(app: App, { reloads }: RouteDeps): void {
  const list = {
    operationId: "listFleets",
    tags,
    summary: "List fleets with their ranks and the weights each holds",
    response: { 200: ref(FleetListAnswer), ...problems() },
  };
  app.get("/v1/fleets", { schema: list }, async () => ({ fleets: await reloads.fleets() }));

  const get = {
    operationId: "getFleet",
    tags,
    summary: "Read one fleet",
    params: FleetParams,
    response: { 200: ref(FleetAnswer), ...problems("invalid_request", "not_found") },
  };
  app.get("/v1/fleets/:fleet", { schema: get }, async (request) => reloads.fleet(request.params.fleet));
}

function addRoutable(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "checkRoutable",
    tags,
    summary: "For routers: 200 when the fleet may be routed to, 409 when not",
    params: FleetParams,
    querystring: Type.Object(
      {
        min_weight_version: Type.Optional(
          Type.String({ minLength: 1, maxLength: 100, description: "The oldest weight version that will do" }),
        ),
      },
      closed,
    ),
    response: { 200: ref(RoutableAnswer), ...problems("invalid_request", "not_found", "not_routable") },
  };
  app.get("/v1/fleets/:fleet/routable", { schema }, async (request) =>
    reloads.routable(request.params.fleet, request.query.min_weight_version ?? null),
  );
}

function addRollback(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "rollBackFleet",
    tags,
    summary: "Bring an earlier weight version back, as a reload of kind rollback",
    description:
      "An empty body rolls back to the fleet's `rollback_version`. A repeat of a `submission_id` is the same rollback.",
    params: FleetParams,
    body: ref(RollbackBody),
    response: {
      202: ref(ReloadAnswer),
      ...problems(
        "invalid_request",
        "not_found",
        "weight_version_conflict",
        "nothing_to_roll_back",
        "submission_conflict",
        "backpressure",
      ),
    },
  };
  app.post("/v1/fleets/:fleet/rollback", { schema, preValidation: bodyOrEmpty }, async (request, reply) => {
    const { reload } = await reloads.rollback(request.params.fleet, request.body);
    return reply.code(202).header("location", reloadPath(reload)).send(reload);
  });
}

/** All of a rollback's fields have defaults, so no body is an empty one. */
async function bodyOrEmpty(request: { body: unknown }): Promise<void> {
  request.body ??= {};
}

function addDrain(app: App, { reloads }: RouteDeps): void {
  const drain = {
    operationId: "drainReplica",
    tags,
    summary: "Go on without a replica: the others no longer wait for it",
    description:
      "Needs no body; a repeat changes nothing. The replica is back when it is undrained, or a rank of it has started again, and all " +
      "of its ranks hold what is committed. The last replica that is not drained is refused.",
    params: ReplicaParams,
    response: { 200: ref(FleetAnswer), ...problems("invalid_request", "not_found") },
  };
  app.post("/v1/fleets/:fleet/replicas/:replica/drain", { schema: drain }, async (request) =>
    reloads.drain(request.params.fleet, request.params.replica),
  );

  const undrain = {
    operationId: "undrainReplica",
    tags,
    summary: "Take a drained replica back",
    description:
      "Needs no body; a repeat, and a replica that is not drained, change nothing. The others wait for it again once all of its " +
      "ranks hold what is committed; until then it is `joining`.",
    params: ReplicaParams,
    response: { 200: ref(FleetAnswer), ...problems("invalid_request", "not_found") },
  };
  app.post("/v1/fleets/:fleet/replicas/:replica/undrain", { schema: undrain }, async (request) =>
    reloads.undrain(request.params.fleet, request.params.replica),
  );
}
