import { expect, it } from "vitest";
import type { Loading } from "../../../worker/loading.js";
import { isExportOf } from "../../../worker/push/kept-export.js";

it("a kept export is not looked at for content that keeps none: a damaged one of a push before fails no other reload", async () => {
  const files = {
    exists() {
      throw new Error("the kept file was looked at");
    },
  };
  const pushes = { arena: { livePath: "/arena/live.safetensors" }, files };
  const loading = { owner: { content: "r" }, plan: { retainExport: false, layoutDigest: "l" }, pushes };
  expect(await isExportOf(loading as unknown as Loading)).toBe(false);
});
