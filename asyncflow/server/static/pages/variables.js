// Variables: values that flows read, kept in the database.

import { get, items, mayAct, part, put, remove } from "../api.js";
import { fill, h, keyed } from "../dom.js";
import { pretty } from "../format.js";
import { asJson } from "../schema.js";
import { button, confirm, dialog, empty, field, table, toast, when } from "../parts.js";

export function variables(context) {
  context.title("Variables");
  const body = h("tbody");
  const none = h("div");
  const box = table("Variables", [["Name"], ["Value"], ["Changed", "wide"], ["", "right"]], body);
  const loader = context.loader(async () => {
    let list;
    try {
      list = items(await get("variables", null, context.signal));
    } catch (error) {
      if (error.status !== 404) throw error;
      box.hidden = true;
      fill(none, empty("This server keeps no variables."));
      return;
    }
    keyed(body, list.slice(0, 200), (one) => one.name, (one) =>
      h("tr", null,
        h("td.main-cell", null, one.name, one.description ? h("span.sub", null, one.description) : null),
        h("td.message-cell", null, h("code", null, JSON.stringify(one.value)?.slice(0, 300))),
        h("td.wide", null, when(one.updated_at)),
        h("td.right", null, mayAct()
          ? [button("Edit", () => edit(one), { kind: "small", "aria-label": `Edit ${one.name}` }),
              button("Delete", () => confirm(`Delete ${one.name}?`, "What reads it gets its default, or an error.", "Delete", async () => {
                await remove(`variables/${part(one.name)}`);
                loader.now();
                return true;
              }), { kind: "small danger-text", "aria-label": `Delete ${one.name}` })]
          : null)));
    box.hidden = !list.length;
    fill(none, list.length ? null : empty("There are no variables."));
  }, 3);

  function edit(one) {
    const name = h("input", { type: "text", autocomplete: "off", value: one?.name ?? "", readonly: Boolean(one), maxlength: "200" });
    const value = h("textarea.mono", { rows: "8", spellcheck: "false", value: one ? pretty(one.value) : '""' });
    const fields = [field("Name", name, { required: true }), field("Value, as JSON", value, { required: true, help: 'Text stands in quotes: "eu-west".' })];
    dialog(one ? `Variable ${one.name}` : "New variable", fields, {
      okay: "Save",
      async submit() {
        fields[0].complain(name.value.trim() ? "" : "It must be given.");
        let given;
        try {
          given = asJson(value.value);
          fields[1].complain("");
        } catch (error) {
          fields[1].complain(error.message);
          return false;
        }
        if (!name.value.trim()) return false;
        await put(`variables/${part(name.value.trim())}`, { value: given });
        toast("It is saved.");
        loader.now();
        return true;
      },
    });
  }

  loader.now();
  context.every(30, loader.soon);
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Variables"), h("span.spring"),
    mayAct() ? button("New variable…", () => edit(null), { kind: "primary" }) : null), box, none);
}
