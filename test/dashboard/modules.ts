// The dashboard's modules, as a browser imports them: plain JavaScript without types.

import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const FOLDER = resolve(import.meta.dirname, "../../orchestrator/dashboard");

export const dashboard = (file: string) => import(pathToFileURL(join(FOLDER, file)).href);

export interface DrawnNode {
  tag: string;
  key: string | null;
  attributes: Record<string, string>;
  children: (DrawnNode | string)[];
}

/** All text below, as one string. */
export function textOf(nodes: (DrawnNode | string)[]): string {
  return nodes.map((node) => (typeof node === "string" ? node : textOf(node.children))).join(" ");
}

export function allOf(nodes: (DrawnNode | string)[], tag: string): DrawnNode[] {
  const elements = nodes.filter((node) => typeof node !== "string");
  return elements.flatMap((node) => [...(node.tag === tag ? [node] : []), ...allOf(node.children, tag)]);
}
