// The bytes of a text/event-stream -> events. Chunks may cut a line or a character anywhere.

export interface StreamEvent {
  /** What Last-Event-ID gives back; null before the first one that has any. */
  id: string | null;
  name: string;
  payload: unknown;
}

/** An event with a reload's whole record has a few hundred kilobytes. */
const MAX_LINE = 32 * 2 ** 20;

export async function* parseEventStream(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<StreamEvent> {
  const decoder = new TextDecoder();
  let rest = "";
  let id: string | null = null;
  let name = "message";
  let lines: string[] = [];
  for await (const chunk of chunks) {
    rest += decoder.decode(chunk, { stream: true });
    if (rest.length > MAX_LINE) throw new Error(`an event stream's line is longer than ${MAX_LINE} characters`);
    // A lone CR at the end may be the first half of CRLF.
    const complete = rest.split(/\r\n|\n|\r(?!$)/);
    rest = complete.pop() ?? "";
    for (const line of complete) {
      const [field, value] = splitField(line);
      if (field === "id") id = value;
      else if (field === "event") name = value;
      else if (field === "data") lines.push(value);
      else if (line === "") {
        if (lines.length > 0) yield { id, name, payload: JSON.parse(lines.join("\n")) };
        name = "message";
        lines = [];
      }
    }
  }
}

/** A line that begins with a colon is a comment: the orchestrator's sign of life. */
function splitField(line: string): [field: string, value: string] {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}
