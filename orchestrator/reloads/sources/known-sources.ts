// Whether the source of earlier weights is still what it was, for answers that must not wait for it: what the last look found is
// remembered, and the next look goes on beside whoever asks.

import { setTimeout as delay } from "node:timers/promises";
import { keepLast } from "../../fleet/keep-last.js";

const LOOK_AGAIN_MS = 2_000;
/** Of whoever asks first. */
const FIRST_ANSWER_MS = 1_000;

/** `look` throws when there is nothing to say now, as while Redis is away: what was known then stays. */
export function knownSources(look: (content: string) => Promise<boolean>) {
  const known = keepLast<{ isUsable: boolean; at: number }>(256);
  const looking = new Map<string, Promise<void>>();

  function refresh(content: string): Promise<void> {
    const before = looking.get(content);
    if (before !== undefined) return before;
    const now = look(content)
      .then(
        (isUsable) => void known.set(content, { isUsable, at: performance.now() }),
        () => undefined,
      )
      .finally(() => looking.delete(content));
    looking.set(content, now);
    return now;
  }

  return async (content: string): Promise<boolean> => {
    const before = known.get(content);
    if (before !== undefined) {
      if (performance.now() - before.at > LOOK_AGAIN_MS) void refresh(content);
      return before.isUsable;
    }
    await Promise.race([refresh(content), delay(FIRST_ANSWER_MS, null, { ref: false })]);
    const found = known.get(content) ?? known.set(content, { isUsable: false, at: performance.now() });
    return found.isUsable;
  };
}
