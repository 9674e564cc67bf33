// The version of this program, as package.json says it: the one place that is changed for a release.

import { PACKAGE } from "./package-root.js";

export const VERSION = PACKAGE.version;
