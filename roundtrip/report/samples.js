(() => {
  const find = id => document.getElementById(id);
  const tables = [...document.querySelectorAll("table.samples tbody")];
  const rows = tables.map(table => [...table.rows]);
  const key = { gain: row => -row.dataset.change, loss: row => +row.dataset.change, line: row => +row.dataset.line };
  const show = () => {
    const words = find("filter").value.toLocaleLowerCase(), order = key[find("order").value];
    let shown = 0, all = 0;
    rows.forEach((list, i) => {
      list.sort((a, b) => order(a) - order(b));
      for (const row of list) {
        row.hidden = !row.textContent.toLocaleLowerCase().includes(words);
        shown += !row.hidden;
        all += 1;
      }
      tables[i].append(...list);
    });
    find("count").textContent = `${shown} of ${all} lines`;
  };
  find("filter").addEventListener("input", show);
  find("order").addEventListener("change", show);
  find("controls").hidden = false;
  show();
})();
