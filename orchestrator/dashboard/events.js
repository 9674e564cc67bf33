// A reload's event stream -> calls. By fetch, since EventSource cannot carry the Authorization header; connects again after
// the last event's id when the stream breaks, and stops for good once the reload has ended.

import { isEnded } from "./store.js";

const RECONNECT_MS = 1000;

/** Resolves when the reload has ended or the signal is aborted. `call` is fetch with the token; events are {id, name, payload}. */
export async function followReload(id, call, onEvent, signal) {
  let lastId = null;
  while (!signal.aborted) {
    try {
      const headers = lastId === null ? {} : { "last-event-id": lastId };
      const response = await call(`/v1/reloads/${encodeURIComponent(id)}/events`, { headers, signal });
      if (response.status === 204 || response.status === 404) return;
      for await (const event of eventsIn(response.body)) {
        if (event.id !== null) lastId = event.id;
        onEvent(event);
        if (event.name === "state" && isEnded(event.payload.state)) return;
      }
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}

async function* eventsIn(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const frames = text.split("\n\n");
      text = frames.pop();
      for (const frame of frames) {
        const event = parseFrame(frame);
        if (event !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

function parseFrame(frame) {
  const fields = { id: null, event: "message", data: null };
  for (const line of frame.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return fields.data === null ? null : { id: fields.id, name: fields.event, payload: JSON.parse(fields.data) };
}
