// The bearer token, for the orchestrator that asks for it and the commands that send it: from a variable, or from a file.

import { readFileSync } from "node:fs";
import { LayercastError } from "../contract/errors.js";

export const TOKEN_VARIABLE = "LAYERCAST_TOKEN";
export const TOKEN_FILE_VARIABLE = "LAYERCAST_TOKEN_FILE";

/** null: none is given. Throws `invalid_request`. */
export function readToken(variable: string | null, file: string | null): string | null {
  if (variable !== null && file !== null) {
    throw new LayercastError(
      "invalid_request",
      `Both ${TOKEN_VARIABLE} and the token file ${file} are given: give one of them.`,
    );
  }
  const token = file === null ? variable : readTokenFile(file);
  if (token === null || TOKEN.test(token)) return token;
  throw new LayercastError(
    "invalid_request",
    `The token ${file === null ? `in ${TOKEN_VARIABLE}` : `in ${file}`} must be one or more of A-Z a-z 0-9 - . _ ~ + / with '=' only at its end, ` +
      "as an Authorization header carries it.",
  );
}

/** By the names of the environment; an empty variable counts as not set. */
export function tokenOf(env: Readonly<Record<string, string | undefined>>): string | null {
  const given = (name: string) => {
    const value = env[name]?.trim();
    return value === undefined || value === "" ? null : value;
  };
  return readToken(given(TOKEN_VARIABLE), given(TOKEN_FILE_VARIABLE));
}

/** RFC 6750's b68token. */
const TOKEN = /^[A-Za-z0-9._~+/-]+=*$/;

function readTokenFile(file: string): string {
  try {
    return readFileSync(file, "utf8").trim();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new LayercastError(
      "invalid_request",
      `The token file ${file} cannot be read (${reason}). Name another (${TOKEN_FILE_VARIABLE}, of the orchestrator also --token-file), ` +
        `or put the token into ${TOKEN_VARIABLE}.`,
      { file },
      error,
    );
  }
}
