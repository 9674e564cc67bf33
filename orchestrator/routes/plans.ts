// The route that plans a reload without submitting it.

import { PlanAnswer, PlanBody } from "../contract/reload.js";
import type { App, RouteDeps } from "./app.js";
import { PLAN_PROBLEMS, SUBMIT_LIMIT_BYTES } from "./reloads.js";
import { problems, ref } from "./schemas.js";

export function addPlanRoutes(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "makePlan",
    tags: ["plans"],
    summary: "Plan a checkpoint: layers, bytes a rank reads and holds, peak memory, skipped tensors",
    description:
      "For the tensor-parallel size given, or that of the fleet named. Reads the checkpoint's headers, changes nothing.",
    body: ref(PlanBody),
    response: { 200: ref(PlanAnswer), ...problems(...PLAN_PROBLEMS, "not_found") },
  };
  app.post("/v1/plans", { schema, bodyLimit: SUBMIT_LIMIT_BYTES }, async (request) => reloads.plan(request.body));
}
