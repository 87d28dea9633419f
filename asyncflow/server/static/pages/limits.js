// Named limits, and who has how much of them.

import { get, items, mayAct, part, put, remove } from "../api.js";
import { fill, h, keyed } from "../dom.js";
import { duration, number } from "../format.js";
import { button, card, confirm, dialog, empty, field, table, toast, when } from "../parts.js";
import { holderList } from "../waits.js";

export function limits(context) {
  context.title("Limits");
  const body = h("tbody");
  const none = h("div");
  const box = table("Limits", [["Limit"], ["In use", "bar-cell"], ["Held by", "wide"], ["Waiting", "middle right"], ["", "right"]], body);
  const ownBody = h("tbody");
  const own = card("In the process of this server", [
    h("p.muted.small", null, "Limits of its engine, its tasks and its runs that are in use now."),
    table("Limits of this process", [["Limit"], ["In use", "bar-cell"], ["Held by", "wide"], ["Waiting", "middle right"]], ownBody),
  ]);
  own.hidden = true;
  const loader = context.loader(async () => {
    const all = items(await get("limits", null, context.signal));
    const list = all.filter((one) => one.scope === "shared");
    const rest = all.filter((one) => one.scope !== "shared");
    keyed(body, list.slice(0, 200), (one) => one.name, (one) => row(one, true));
    keyed(ownBody, rest.slice(0, 50), (one) => `${one.scope} ${one.name}`, (one) => row(one, false));
    own.hidden = !rest.length;
    box.hidden = !list.length;
    fill(none, list.length ? null : empty("There are no named limits."));
  }, 2);

  function row(one, isNamed) {
    const share = one.size ? Math.max(0, Math.min(1, one.used / one.size)) : 0;
    const meter = h("div.progress", { class: share >= 1 ? "full" : "", role: "img", "aria-label": `${number(one.used)} of ${number(one.size)} in use` }, h("span"));
    meter.firstElementChild.style.width = `${share * 100}%`;
    return h("tr", null,
      h("td.main-cell", null, isNamed ? one.name : called(one), h("span.sub", null, isNamed ? said(one) : null),
        one.holders.length ? h("div.on-phone", null, h("ul.names.small", { "aria-label": "Held by" }, holderList(one.holders, one.more, 3))) : null),
      h("td.bar-cell", null, h("div.progress-row", null, one.period || !one.size ? null : meter,
        h("span.num", null, `${number(one.used)}${one.size === null || one.size === undefined ? "" : ` / ${number(one.size)}`}`)),
        one.free_at ? h("p.muted.small", null, "used up until ", when(one.free_at)) : null),
      h("td.wide", null, one.holders.length || one.more
        ? h("ul.names.small", null, holderList(one.holders, one.more, 6))
        : h("span.muted", null, one.period ? "used when code starts" : "nobody")),
      h("td.middle.right", null, one.waiting ? number(one.waiting) : h("span.muted", null, "–")),
      isNamed ? h("td.right", null, mayAct()
        ? [button("Edit", () => edit(one), { kind: "small", "aria-label": `Edit ${one.name}` }),
            button("Lift", () => confirm(`Lift ${one.name}?`, "Then it holds nobody back any more, unless code declares it.", "Lift", async () => {
              await remove(`limits/${part(one.name)}`);
              loader.now();
              return true;
            }), { kind: "small danger-text", "aria-label": `Lift ${one.name}` })]
        : null) : null);
  }

  function edit(one) {
    const name = h("input", { type: "text", autocomplete: "off", value: one?.name ?? "", readonly: Boolean(one), maxlength: "200" });
    const limit = h("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: one?.limit ?? one?.size ?? "" });
    const period = h("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: one?.period ?? "" });
    const burst = h("input", { type: "text", inputmode: "numeric", autocomplete: "off", value: one?.burst ?? "" });
    const fields = {
      name: field("Name", name, { required: true }),
      limit: field("Limit", limit, { required: true, help: "How many at once; with a period, how many in it." }),
      period: field("Period in seconds", period, { help: "Only of rates." }),
      burst: field("Burst", burst, { help: "How many may come at once, of rates." }),
    };
    const read = (key, control, isNeeded) => {
      const text = control.value.trim();
      const value = Number(text);
      const wrong = text === "" ? (isNeeded ? "It must be given." : "") : Number.isFinite(value) && value >= 0 ? "" : "It must be a number, at least 0.";
      fields[key].complain(wrong);
      return wrong ? undefined : text === "" ? null : value;
    };
    dialog(one ? `Limit ${one.name}` : "New limit", Object.values(fields), {
      okay: "Set",
      async submit() {
        fields.name.complain(name.value.trim() ? "" : "It must be given.");
        const body = { limit: read("limit", limit, true), period: read("period", period), burst: read("burst", burst) };
        if (!name.value.trim() || Object.values(body).includes(undefined)) return false;
        await put(`limits/${part(name.value.trim())}`, body);
        toast("It is set.");
        loader.now();
        return true;
      },
    });
  }

  loader.now();
  context.every(3, loader.soon);
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Limits"), h("span.spring"),
    mayAct() ? button("New limit…", () => edit(null), { kind: "primary" }) : null), box, none, own);
}

/** What people call a limit that has no name of its own. */
function called(one) {
  const names = {
    engine: "max_concurrency of the engine", threads: "Threads", processes: "Worker processes",
    task: `Task ${one.name}`, flow: "max_concurrency of a flow",
  };
  return names[one.scope] ?? one.name;
}

function said(one) {
  const size = one.size;
  if (size === null || size === undefined) return "no size: it holds nobody back";
  const burst = one.burst ? `, ${number(one.burst)} at once` : "";
  const how = one.period ? `${number(size)} in ${duration(one.period)}${burst}` : `${number(size)} at once`;
  return `${size === 0 ? "paused" : how}${one.limit === null ? ", declared in code" : ""}`;
}
