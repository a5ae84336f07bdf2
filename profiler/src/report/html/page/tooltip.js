// One tooltip for the page: rows of a name and a figure below a title.
const tooltip = {
  box: document.getElementById('tooltip'),
  show(title, rows, x, y) {
    const row = ([name, figure, mark, strong]) => {
      const marks = mark ? [element('span', { class: `mark ${mark}`, 'aria-hidden': 'true' })] : [];
      return element('tr', strong ? { class: 'strong' } : {}, [element('th', {}, [...marks, name]), element('td', {}, [figure])]);
    };
    this.box.replaceChildren(element('strong', {}, [title]), element('table', {}, rows.map(row)));
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const room = document.documentElement.clientWidth - width - 8;
    const right = x + 16;
    const left = right <= room ? right : Math.max(8, Math.min(room, x - width - 16));
    const top = Math.max(8, Math.min(innerHeight - height - 8, y - height / 2));
    // Where there is no room beside the pointer, stand above it, so that nothing covers what is pointed at.
    const covers = left < x && x < left + width;
    this.box.style.left = `${left}px`;
    this.box.style.top = `${covers ? Math.max(8, y - height - 20) : top}px`;
  },
  hide() { this.box.hidden = true; },
};
