// Builds DOM out of text and nodes. Whatever comes from the server is text here, never markup:
// there is no way through this module to parse a string.

const SVG = "http://www.w3.org/2000/svg";
const LONGEST = 50_000;
// Marks that turn the direction of text around: they can make a name look like another.
const TURNING = /[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/g;
const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;
const COLOURS = /\u001b\[[0-9;?]*[A-Za-z]/g;

/** Text as it may be shown: without colours of terminals, control characters and turned directions. */
export function clean(value) {
  let text = String(value);
  if (text.length > LONGEST) {
    text = `${text.slice(0, LONGEST)}… (${text.length - LONGEST} more characters)`;
  }
  return text.replace(COLOURS, "").replace(TURNING, "\ufffd").replace(CONTROL, "\ufffd");
}

/** An address that may be gone to: http(s), or a place of this page; else null. */
export function safeHref(address) {
  const text = String(address).trim();
  if (text.startsWith("#/")) return text;
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * An element.
 * @param {string} spec a tag with classes, such as "div.card.wide"
 * @param {object|null} props attributes; on... are listeners; true and false set and leave out
 * @param {...any} children nodes, texts, lists of them; null and false are left out
 */
export function h(spec, props, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props ?? {})) set(node, name, value);
  return put(node, children);
}

function set(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (typeof value === "function") {
    node.addEventListener(name.slice(2), value);
  } else if (name === "class") {
    node.className = `${node.className} ${value}`.trim();
  } else if (name === "dataset") {
    Object.assign(node.dataset, value);
  } else if (name === "value" || name === "checked" || name === "indeterminate") {
    node[name] = value;
  } else if (name === "href") {
    const safe = safeHref(value);
    if (safe !== null) node.setAttribute("href", safe);
  } else if (!name.startsWith("on") && name !== "style" && name !== "srcdoc" && name !== "src") {
    node.setAttribute(name, value === true ? "" : clean(value));
  }
}

function put(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) put(node, child);
    else node.append(child instanceof Node ? child : clean(child));
  }
  return node;
}

/** Take these children instead of those that are there. */
export function fill(node, ...children) {
  node.replaceChildren();
  return put(node, children);
}

/** An element of SVG; like `h`. */
export function s(tag, props, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  return put(node, children);
}

/**
 * Show *items* as children of *parent*, and leave those alone that did not change: what has the
 * focus keeps it.
 */
export function keyed(parent, items, keyOf, make) {
  const before = parent.shown ?? new Map();
  const after = new Map();
  const nodes = items.map((item) => {
    const key = keyOf(item);
    const print = JSON.stringify(item);
    const old = before.get(key);
    const node = old && old.print === print ? old.node : make(item);
    after.set(key, { print, node });
    return node;
  });
  parent.shown = after;
  const kept = new Set(nodes);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  nodes.forEach((node, i) => {
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
}

const PATHS = {
  home: "M3 11 12 4l9 7M5 10v10h5v-6h4v6h5V10",
  runs: "M4 6h16M4 12h16M4 18h10",
  deployments: "M12 3v6l4 2M12 21a9 9 0 1 1 9-9",
  automations: "M13 3 5 14h6l-1 7 9-12h-6z",
  events: "M3 12h4l3-8 4 16 3-8h4",
  limits: "M4 18a8 8 0 1 1 16 0M12 18l4-6",
  variables: "M8 4C5 4 7 11 4 12c3 1 1 8 4 8M16 4c3 0 1 7 4 8-3 1-1 8-4 8",
  menu: "M4 7h16M4 12h16M4 17h16",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z",
  close: "M6 6l12 12M18 6 6 18",
  down: "M6 9l6 6 6-6",
  right: "M9 6l6 6-6 6",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  help: "M9 9a3 3 0 1 1 4 2.8c-.8.4-1 1-1 2.2M12 18v.01",
  warn: "M12 4 3 20h18zM12 10v4M12 17v.01",
  COMPLETED: "M5 12.5l4.5 4.5L19 7.5",
  FAILED: "M7 7l10 10M17 7 7 17",
  CRASHED: "M13 3 6 13h5l-1 8 8-11h-6z",
  RUNNING: "M8 5l11 7-11 7z",
  PAUSED: "M8 6v12M16 6v12",
  CANCELLED: "M6 6l12 12M12 21a9 9 0 1 1 0-18 9 9 0 0 1 0 18z",
  CANCELLING: "M12 7v5M12 16v.01M12 21a9 9 0 1 1 0-18 9 9 0 0 1 0 18z",
  SCHEDULED: "M12 7v5l3 2M12 21a9 9 0 1 1 0-18 9 9 0 0 1 0 18z",
  PENDING: "M6 12v.01M12 12v.01M18 12v.01",
};

/** One of the icons above; it says nothing to a screen reader, what it is beside does. */
export function icon(name, extra = "") {
  return s(
    "svg",
    { class: `icon ${extra}`, viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    s("path", { d: PATHS[name] ?? PATHS.PENDING }),
  );
}

// What may be in the HTML of a markdown artifact, which the server has made and sanitised: this is
// the second look. It is read here and not by the browser, so that there is nothing to slip through.
const TAGS = new Set(
  ("p br hr h1 h2 h3 h4 h5 h6 ul ol li strong em b i s del code pre blockquote table thead tbody tr"
    + " th td a span div dl dt dd sup sub kbd").split(" "),
);
const VOID = new Set(["br", "hr"]);
const SILENT = new Set(["script", "style", "template", "iframe", "object", "svg", "math", "textarea", "title"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const PIECE = /<!--[^]*?-->|<(\/?)([a-zA-Z][a-zA-Z0-9]*)((?:[^<>"']|"[^"]*"|'[^']*')*)>/g;

/** The nodes of sanitised HTML: tags of an allow-list, links to http(s), and text. */
export function fromHtml(html) {
  const text = String(html).slice(0, 200_000);
  const root = document.createDocumentFragment();
  const open = [root];
  let silent = null;
  let budget = 3000;
  let end = 0;
  const say = (upTo) => {
    if (silent === null && upTo > end) open.at(-1).append(clean(decoded(text.slice(end, upTo))));
  };
  for (const piece of text.matchAll(PIECE)) {
    say(piece.index);
    end = piece.index + piece[0].length;
    const name = piece[2]?.toLowerCase();
    const closes = piece[1] === "/";
    if (silent !== null) {
      if (closes && name === silent) silent = null;
    } else if (name === undefined || (budget -= 1) < 0) {
      continue;
    } else if (SILENT.has(name)) {
      if (!closes) silent = name;
    } else if (!TAGS.has(name)) {
      continue;
    } else if (closes) {
      const at = open.findLastIndex((node) => node.localName === name);
      if (at > 0) open.length = at;
    } else {
      const made = document.createElement(name);
      const href = name === "a" ? safeHref(decoded(/\shref\s*=\s*(?:"([^"]*)"|'([^']*)')/i.exec(piece[3])?.slice(1).find(Boolean) ?? "")) : null;
      if (href !== null) {
        made.setAttribute("href", href);
        made.setAttribute("rel", "noopener noreferrer nofollow");
        made.setAttribute("target", "_blank");
      }
      open.at(-1).append(made);
      if (!VOID.has(name) && open.length < 40) open.push(made);
    }
  }
  say(text.length);
  return root;
}

function decoded(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]+));/gi, (all, decimal, hex, name) => {
    if (name) return ENTITIES[name.toLowerCase()] ?? all;
    const code = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd";
  });
}
