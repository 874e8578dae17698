/* The tabs, in their order, and the other parts of the page: a new one is added here. */
import { part as exportMenu } from "./export.js";
import { part as folds } from "./folds.js";
import { part as lessons } from "./lessons.js";
import { tab as viewAttention } from "./view-attention.js";
import { tab as viewCache } from "./view-cache.js";
import { tab as viewCompare } from "./view-compare.js";
import { tab as viewFigures } from "./view-figures.js";
import { tab as viewStage } from "./view-stage.js";
import { tab as viewToken } from "./view-token.js";
import { tab as viewTruth } from "./view-truth.js";
import { tab as viewWatch } from "./view-watch.js";

const TABS = [
  viewWatch,
  viewStage,
  viewCompare,
  viewCache,
  viewAttention,
  viewTruth,
  viewToken,
  viewFigures,
];
const PARTS_OF_PAGE = [lessons, exportMenu, folds];

export { TABS, PARTS_OF_PAGE };
