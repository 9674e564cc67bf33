// A TCP proxy whose connections can go silent without being closed, as behind a firewall that has forgotten them; new ones work.

import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface SilentProxy {
  port: number;
  /** From here on the connections that there are carry nothing: no bytes, no end. `replies`: only what Redis answers is lost. */
  silence(what: "all" | "replies"): void;
  close(): void;
}

interface Pair {
  client: Socket;
  server: Socket;
  lost: "nothing" | "replies" | "all";
}

/** To a unix socket. */
export async function startSilentProxy(path: string): Promise<SilentProxy> {
  const pairs: Pair[] = [];
  const listener = createServer((client) => {
    const pair: Pair = { client, server: connect(path), lost: "nothing" };
    pairs.push(pair);
    pass(pair, client, pair.server, (lost) => lost === "all");
    pass(pair, pair.server, client, (lost) => lost !== "nothing");
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  return {
    port: (listener.address() as AddressInfo).port,
    silence(what) {
      for (const pair of pairs) pair.lost = what;
    },
    close() {
      listener.close();
      for (const { client, server } of pairs) for (const socket of [client, server]) socket.destroy();
    },
  };
}

function pass(pair: Pair, from: Socket, to: Socket, isLost: (lost: Pair["lost"]) => boolean): void {
  from.on("data", (bytes) => {
    if (!isLost(pair.lost)) to.write(bytes);
  });
  from.on("error", () => undefined);
  from.on("close", () => {
    if (pair.lost === "nothing") to.destroy();
  });
}
