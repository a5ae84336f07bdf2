// The flame graph: buttons from the top down, each as wide as its bytes.
class Flame {
  constructor(box, tree) {
    Object.assign(this, { box, tree, shown: tree });
    this.parents = new Map();
    const walk = (node) => {
      for (const child of node.children ?? []) {
        this.parents.set(child, node);
        walk(child);
      }
    };
    walk(tree);
    box.addEventListener('keydown', (event) => { if (event.key === 'Escape') this.zoom(tree); });
    box.addEventListener('pointerleave', () => tooltip.hide());
    this.draw();
  }

  above(node) {
    const parent = this.parents.get(node);
    return parent ? [...this.above(parent), parent] : [];
  }

  zoom(node) {
    this.shown = node;
    this.draw();
    this.box.querySelector('button:not(.above)')?.focus();
  }

  draw() {
    const above = this.above(this.shown);
    const buttons = above.map((node, depth) => this.button(node, depth, 0, 100, true));
    let deepest = above.length;
    const place = (node, depth, left, width) => {
      buttons.push(this.button(node, depth, left, width, false));
      deepest = Math.max(deepest, depth);
      let at = left;
      for (const child of node.children ?? []) {
        const wide = width * (child.bytes / node.bytes);
        if (wide >= 0.15) place(child, depth + 1, at, wide);
        at += wide;
      }
    };
    place(this.shown, above.length, 0, 100);
    this.box.style.height = `${(deepest + 1) * 22}px`;
    this.box.replaceChildren(...buttons);
  }

  button(node, depth, left, width, above) {
    const part = `${((node.bytes / this.tree.bytes) * 100).toFixed(1)} %`;
    const made = element('button', {
      type: 'button',
      class: `${node.class ?? 'mixed'}${above ? ' above' : ''}`,
      style: `left:${left}%;width:${width}%;top:${depth * 22}px`,
      'aria-label': `${node.name}, ${human(node.bytes)}, ${part} of RSS`,
    }, [node.name]);
    const rows = [['resident', exact(node.bytes), node.class, true], ['of RSS', part], ['class', node.class ?? 'several']];
    if (node.place) rows.push(['where', node.place]);
    made.addEventListener('pointermove', (event) => tooltip.show(node.name, rows, event.clientX, event.clientY));
    made.addEventListener('focus', () => {
      const box = made.getBoundingClientRect();
      if (made.matches(':focus-visible')) tooltip.show(node.name, rows, box.left + Math.min(box.width, 60), box.bottom);
    });
    made.addEventListener('blur', () => tooltip.hide());
    made.addEventListener('click', () => this.zoom(node));
    return made;
  }
}

const startFlames = (runs) => {
  for (const box of document.querySelectorAll('.flame')) {
    new Flame(box, runs.find((it) => it.id === Number(box.dataset.run)).flame);
  }
};
