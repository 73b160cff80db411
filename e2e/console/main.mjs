// node main.mjs FLOW ADDRESS [ARGUMENT…]: does what a user would do, and fails if the console does something else.

import * as hostile from "./hostile.mjs";
import * as keys from "./keys.mjs";
import * as nodes from "./nodes.mjs";
import * as tokens from "./tokens.mjs";
import * as views from "./views.mjs";
import * as watches from "./watches.mjs";

const FLOWS = { ...hostile, ...keys, ...nodes, ...tokens, ...views, ...watches };
const [flow, base, ...rest] = process.argv.slice(2);
await FLOWS[flow](base, ...rest);
