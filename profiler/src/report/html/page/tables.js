// Tables that are sorted by a click on a heading, and filtered by what is typed.
const keyOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
};

const sortBy = (table, heading) => {
  const column = heading.cellIndex;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numeric = rows.length > 0 && typeof keyOf(rows[0], column) === 'number';
  // Figures: the largest first; names: from A on. A second click turns it round.
  const first = numeric ? 'descending' : 'ascending';
  const second = numeric ? 'ascending' : 'descending';
  const order = heading.getAttribute('aria-sort') === first ? second : first;
  for (const other of heading.parentElement.cells) other.removeAttribute('aria-sort');
  heading.setAttribute('aria-sort', order);
  const sign = order === 'ascending' ? 1 : -1;
  const compare = numeric ? (a, b) => a - b : (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const keyed = rows.map((row) => [keyOf(row, column), row]);
  keyed.sort(([a], [b]) => sign * compare(a, b));
  body.append(...keyed.map(([, row]) => row));
};

const startTables = () => {
  for (const button of document.querySelectorAll('th button')) {
    button.addEventListener('click', () => sortBy(button.closest('table'), button.parentElement));
  }
  for (const input of document.querySelectorAll('input[data-filters]')) {
    const body = document.getElementById(input.dataset.filters).tBodies[0];
    const count = document.getElementById(`${input.dataset.filters}-count`);
    const said = count.textContent;
    input.addEventListener('input', () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let [shown, bytes] = [0, 0];
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        if (!row.hidden) {
          shown += 1;
          bytes += Number(row.dataset.bytes);
        }
      }
      count.textContent = words.length ? `${thousands(shown)} of these ${thousands(body.rows.length)} rows, ${human(bytes)}` : said;
    });
  }
};
