// What the routes may ask for: the whole of Layercast's behaviour as one interface of plain functions. `openReloads`
// (open-reloads.ts) makes it from a Redis connection; route tests give their own.

import type { Readable } from "node:stream";
import type { HooksRequest, HooksView } from "../contract/hooks.js";
import type { BucketRequest, BucketView, ExpectedTensorsView } from "../contract/push.js";
import type {
  ExportView,
  FleetView,
  PlanRequest,
  PlanView,
  ReloadEventName,
  ReloadStateName,
  ReloadView,
  RollbackRequest,
  SubmitRequest,
} from "../contract/reload.js";
import type { RecordPage } from "../fleet/record-store.js";

export interface ReloadFilter extends RecordPage {
  fleet: string | null;
  state: ReloadStateName | null;
}

export interface ReloadEvent {
  /** A Redis stream id, "1700000000000-0"; what Last-Event-ID gives back. */
  id: string;
  name: ReloadEventName;
  payload: unknown;
}

/** Each function throws LayercastError. */
export interface Reloads {
  /** `created` is false when the same submission was made before. */
  submit(request: SubmitRequest): Promise<{ reload: ReloadView; created: boolean }>;
  plan(request: PlanRequest): Promise<PlanView>;
  /** Answers at once when waitMs is 0, else when the reload is terminal or the wait is over. */
  /** Throws `not_found`. */
  state(id: string): Promise<ReloadStateName>;
  get(id: string, waitMs: number, signal: AbortSignal): Promise<ReloadView>;
  list(filter: ReloadFilter): Promise<{ reloads: ReloadView[]; next_cursor: string | null }>;
  cancel(id: string): Promise<ReloadView>;
  /** A push's bucket, as a file or as a body of `sizeBytes`; the same one again is the same. */
  postBucket(id: string, request: BucketRequest): Promise<BucketView>;
  putBucket(id: string, bucket: number, body: Readable, sizeBytes: number): Promise<BucketView>;
  /** Answers at once when waitMs is 0, else when the bucket is consumed, wanted, or of no more use. */
  bucket(id: string, bucket: number, waitMs: number, signal: AbortSignal): Promise<BucketView>;
  /** What a push is to be sent, and what it has been. */
  expectedTensors(id: string): Promise<ExpectedTensorsView>;
  /** All has been sent. */
  finish(id: string): Promise<void>;
  rollback(fleet: string, request: RollbackRequest): Promise<{ reload: ReloadView; created: boolean }>;
  /** Replays what came after `afterId` (null: from the start), then follows; ends after the terminal state's event. */
  events(id: string, afterId: string | null, signal: AbortSignal): AsyncIterable<ReloadEvent>;
  fleets(): Promise<FleetView[]>;
  fleet(name: string): Promise<FleetView>;
  /** Throws `not_routable` with the reason. */
  routable(
    name: string,
    minWeightVersion: string | null,
  ): Promise<{ fleet: string; routable: boolean; weight_version: string | null }>;
  /** From the next stop on; of a fleet that nobody has joined yet too. */
  setHooks(fleet: string, request: HooksRequest): Promise<HooksView>;
  hooks(fleet: string): Promise<HooksView>;
  clearHooks(fleet: string): Promise<void>;
  /** The other replicas no longer wait for it. */
  drain(fleet: string, replica: number): Promise<FleetView>;
  /** They wait for it again, once it holds what is committed. */
  undrain(fleet: string, replica: number): Promise<FleetView>;
  exportRank(fleet: string, replica: number, rank: number): Promise<ExportView>;
  /** In bytes. */
  exportSize(fleet: string, id: string): Promise<number>;
  /** Its bytes from `from` up to `to`. */
  readExport(fleet: string, id: string, from: number, to: number, signal: AbortSignal): AsyncGenerator<Buffer>;
  removeExport(fleet: string, id: string): Promise<void>;
  /** Whether Redis answers and takes writes, for /readyz; throws what it says instead. */
  ready(): Promise<boolean>;
}
