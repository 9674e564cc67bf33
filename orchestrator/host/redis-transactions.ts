// Errors inside of transactions and pipelines. Redis carries out the other commands all the same, and clients hand such an error
// over as one of the replies, where whoever does not look for it takes the whole for done; BullMQ does so when it adds jobs. Here
// no reply goes by: `exec()` throws the first error among them, on every connection that this was called for.

import type { ChainableCommander, Redis } from "ioredis";

type Reply = [error: Error | null, result: unknown];

/** What ioredis's pipelines and commands have besides what its types say. */
interface Batch {
  exec(): Promise<Reply[] | null>;
  sendCommand(command: Command): unknown;
}

interface Command {
  name: string;
  args: unknown[];
  toWritable(socket: object): string | Buffer;
}

export function throwErrorReplies(redis: Redis): void {
  const { multi, pipeline } = redis;
  const opened = (batch: ChainableCommander) => throwing(batch as unknown as Batch) as unknown as ChainableCommander;
  redis.pipeline = (...given) => opened(pipeline.apply(redis, given));
  redis.multi = ((...given: []) => {
    const batch = opened(multi.apply(redis, given));
    carryScripts(batch as unknown as Batch);
    return batch;
  }) as Redis["multi"];
}

function throwing(batch: Batch): Batch {
  const exec = batch.exec.bind(batch);
  batch.exec = async () => {
    const replies = await exec().catch((error: unknown) => {
      throw firstCause(error);
    });
    for (const [error] of replies ?? []) if (error) throw error;
    return replies;
  };
  return batch;
}

/** Of a transaction that was given up: what one of its commands was refused for says more than EXECABORT. */
function firstCause(error: unknown): unknown {
  const [first] = (error as { previousErrors?: Error[] }).previousErrors ?? [];
  return first ?? error;
}

/**
 * A transaction carries the text of the scripts that it runs, each once. Otherwise they would go by the digests that this
 * connection has sent before; a Redis that has lost its scripts (SCRIPT FLUSH, a failover behind the same address) answers
 * NOSCRIPT inside of EXEC, where the client, which sends the text again elsewhere, does not see it.
 */
function carryScripts(batch: Batch): void {
  const carried = new Set<unknown>();
  const send = batch.sendCommand.bind(batch);
  batch.sendCommand = (command) => {
    const [digest] = command.args;
    if (command.name === "evalsha" && !carried.has(digest)) {
      carried.add(digest);
      const write = command.toWritable.bind(command);
      command.toWritable = () => write({}); // as on a socket that has seen no script yet
    }
    return send(command);
  };
}
