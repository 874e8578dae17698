/* What the page may call: open for a stage that the address follows, mount for one alone. */
import { open } from "./address.js";
import { mount } from "./mount.js";

export { open, mount };
