// The worker's end of the links: a Unix socket in the rank's directory. It knows sockets and lines; what a message means is the
// caller's. Whatever a client sends, only its own connection ends.

import { chmodSync, closeSync, constants, openSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import type { Logger } from "pino";
import type { LinkId } from "./leases.js";
import { type EngineMessage, lineReader, MAX_LINE_BYTES, parseEngineMessage, type WorkerMessage } from "./messages.js";

export const SOCKET_NAME = "engines.sock";

export interface LinkServer {
  send(link: LinkId, message: WorkerMessage): void;
  /** Sends the message, if there is one, and closes the connection. */
  end(link: LinkId, message: WorkerMessage | null): void;
  close(): void;
}

export interface LinkServerOptions {
  directory: string;
  /** Of files with weights: who may read them may connect. */
  fileMode: number;
  log: Pick<Logger, "warn">;
  /** Its first message is a hello. */
  onMessage(link: LinkId, message: EngineMessage): void;
  /** Of a link that has said hello. */
  onEnd(link: LinkId): void;
  silentMs?: number;
}

/** An engine says hello at once. */
const SILENT_MS = 10_000;
/** A rank has one engine, or a few. */
const MAX_LINKS = 256;
/** Of a client that does not read. */
const MAX_UNREAD_BYTES = 2 ** 20;

/** Resolves when it listens. The rank's lock is held: a socket that lies there is of a worker that has ended. */
export async function openLinkServer(options: LinkServerOptions): Promise<LinkServer> {
  const { directory, fileMode, log } = options;
  const links = new Map<LinkId, Socket>();
  let lastLink = 0;
  const server = createServer((socket) => {
    lastLink += 1;
    serveLink(socket, lastLink, links, options);
  });
  server.maxConnections = MAX_LINKS;
  server.on("error", (error) => log.warn({ err: error }, "the engines' socket failed"));
  rmSync(join(directory, SOCKET_NAME), { force: true });
  // A socket's path has 108 bytes, a directory's thousands. The descriptor stays open: the path is used again at the end.
  const descriptor = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY);
  const path = `/proc/self/fd/${descriptor}/${SOCKET_NAME}`;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, resolve);
  });
  chmodSync(path, connectModeOf(fileMode));
  server.unref();
  return {
    send: (link, message) => void sendTo(links.get(link), message),
    end(link, message) {
      const socket = links.get(link);
      if (message !== null) sendTo(socket, message);
      socket?.end();
      socket?.setTimeout(SILENT_MS, () => socket.destroy());
    },
    close() {
      server.close(() => closeSync(descriptor));
      for (const socket of links.values()) socket.destroy();
    },
  };
}

/** Connecting needs the right to write. */
export function connectModeOf(fileMode: number): number {
  return fileMode | ((fileMode & 0o044) >> 1);
}

function sendTo(socket: Socket | undefined, message: WorkerMessage): void {
  if (socket === undefined || socket.destroyed) return;
  socket.write(`${JSON.stringify(message)}\n`);
  if (socket.writableLength > MAX_UNREAD_BYTES) socket.destroy();
}

function serveLink(
  socket: Socket,
  link: LinkId,
  links: Map<LinkId, Socket>,
  { log, onMessage, onEnd, silentMs = SILENT_MS }: LinkServerOptions,
): void {
  const read = lineReader();
  let isKnown = false;
  let isOver = false;
  const silence = setTimeout(() => giveUp("has not said hello"), silentMs);
  links.set(link, socket);

  function giveUp(why: string): void {
    if (isOver) return;
    log.warn({ link }, `a connection to ${SOCKET_NAME} is closed: it ${why}`);
    over();
    socket.destroy();
  }

  function over(): void {
    if (isOver) return;
    isOver = true;
    clearTimeout(silence);
    links.delete(link);
    if (isKnown) onEnd(link);
  }

  /** Why this line ends the connection; null: it does not. */
  function handle(line: string): string | null {
    const message = parseEngineMessage(line);
    if (message === null) return `has sent what is no message: ${line.slice(0, 100)}`;
    if ((message.kind === "hello") === isKnown) return isKnown ? "has said hello twice" : "has not said hello first";
    clearTimeout(silence);
    isKnown = true;
    onMessage(link, message);
    return null;
  }

  socket.on("data", (chunk: Buffer) => {
    const lines = read(chunk);
    if (lines === null) giveUp(`has sent a line of more than ${MAX_LINE_BYTES} bytes`);
    for (const line of lines ?? []) {
      const why = isOver ? null : handle(line);
      if (why !== null) giveUp(why);
    }
  });
  socket.on("error", () => {}); // it is closed next
  socket.on("close", over);
}
