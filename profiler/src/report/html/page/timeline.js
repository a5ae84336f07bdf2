// Memory over time: RSS, its classes where pages were looked at, kernel memory on top, phases; a figure for every
// point. Between two looks classes are a straight line, but never above RSS, and what is missing up to it is grey.
const CLASSES = ['stacks', 'heap', 'runtime', 'unclassified'];

const svg = (name, attributes = {}, children = []) => {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// Round steps of 1, 2 or 5 times a power of `base`'s unit, some five of them up to `end`.
const steps = (end, count) => {
  if (!(end > 0)) return [0];
  const power = 10 ** Math.floor(Math.log10(end / count));
  const step = [1, 2, 5, 10].map((times) => times * power).find((it) => end / it <= count);
  const all = [];
  for (let index = 0; index * step <= end * 1.0001; index += 1) all.push(index * step);
  return all;
};

class Timeline {
  constructor(plot, run) {
    Object.assign(this, { plot, run });
    const { timeline } = run;
    this.points = timeline.seconds.map((seconds, index) => ({
      seconds,
      rss: timeline.rss[index],
      classes: timeline.classes[index],
      kernel: timeline.kernel[index],
      spread: timeline.spread[index],
    }));
    this.composed = this.points.filter((point) => point.classes);
    this.between();
    this.current = this.peakIndex();
    new ResizeObserver(() => this.draw()).observe(plot);
    plot.addEventListener('pointermove', (event) => this.point(event));
    plot.addEventListener('pointerdown', (event) => this.point(event));
    plot.addEventListener('pointerleave', () => this.leave());
    plot.addEventListener('focus', () => { if (plot.matches(':focus-visible')) this.select(this.current); });
    plot.addEventListener('blur', () => this.leave());
    plot.addEventListener('keydown', (event) => this.key(event));
  }

  // Kernel memory to draw at every point: a straight line between two looks.
  between() {
    const known = this.points.filter((point) => point.kernel !== null);
    let next = 0;
    for (const point of this.points) {
      while (next < known.length && known[next].seconds < point.seconds) next += 1;
      const [before, after] = [known[next - 1] ?? known[next], known[next] ?? known[next - 1]];
      const span = after ? after.seconds - before.seconds : 0;
      const part = span > 0 ? (point.seconds - before.seconds) / span : 0;
      point.kernelDrawn = after ? before.kernel + part * (after.kernel - before.kernel) : 0;
    }
  }

  peakIndex() {
    const distance = (point) => Math.abs(point.seconds - this.run.peak.seconds) + (point.classes ? 0 : 1e-6);
    let best = 0;
    this.points.forEach((point, index) => { if (distance(point) < distance(this.points[best])) best = index; });
    return best;
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const narrow = width < 520;
    const height = narrow ? 260 : 340;
    const [left, right, top, bottom] = [narrow ? 58 : 74, 14, 40, 40];
    const end = Math.max(this.run.wall, ...this.points.map((point) => point.seconds)) || 1;
    const highest = Math.max(this.run.peak.rss, ...this.points.map((point) => point.rss + point.kernelDrawn)) || 1;
    this.x = (seconds) => left + (seconds / end) * (width - left - right);
    this.y = (bytes) => height - bottom - (bytes / highest) * (height - top - bottom);
    this.inner = { left, right: width - right, top, bottom: height - bottom };

    const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, height, 'aria-hidden': 'true' });
    const id = `hatch-${this.run.id}`;
    const hatch = svg('pattern', { id, class: 'hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse' }, [
      svg('rect', { width: 6, height: 6 }), svg('path', { d: 'M-1,7 L7,-1 M-1,1 L1,-1 M5,7 L7,5' })]);
    picture.append(svg('defs', {}, [hatch]));
    this.drawGrid(picture, end, highest, narrow);
    this.drawAreas(picture, id);
    this.drawPhases(picture);
    this.drawPeak(picture);
    this.cross = svg('g', { visibility: 'hidden' });
    picture.append(this.cross);
    this.plot.replaceChildren(picture);
  }

  drawGrid(picture, end, highest, narrow) {
    const { left, right, bottom } = this.inner;
    const unit = highest >= 2 ** 30 ? ['GiB', 2 ** 30] : highest >= 2 ** 20 ? ['MiB', 2 ** 20] : ['KiB', 2 ** 10];
    const ticks = steps(highest / unit[1], 5);
    const digits = (list) => (list.length > 1 && list[1] < 1 ? Math.ceil(-Math.log10(list[1])) : 0);
    for (const tick of ticks) {
      const y = this.y(tick * unit[1]);
      picture.append(svg('line', { class: tick ? 'grid' : 'axis', x1: left, x2: right, y1: y, y2: y }));
      const words = tick ? tick.toFixed(digits(ticks)).replace(/\B(?=(\d{3})+(?!\d))/g, ',') : `0 ${unit[0]}`;
      picture.append(svg('text', { x: left - 7, y: y + 4, 'text-anchor': 'end' }, [words]));
    }
    const times = steps(end, narrow ? 4 : 8);
    for (const time of times) {
      const words = `${time.toFixed(digits(times))}${time ? '' : ' s'}`;
      picture.append(svg('text', { x: this.x(time), y: bottom + 18, 'text-anchor': 'middle' }, [words]));
    }
    picture.append(svg('text', { x: right, y: bottom + 35, 'text-anchor': 'end' }, ['seconds after exec']));
  }

  drawAreas(picture, hatch) {
    const band = (points, low, high) => {
      const upper = points.map((point) => `${this.x(point.seconds).toFixed(1)},${this.y(high(point)).toFixed(1)}`);
      const lower = points.map((point) => `${this.x(point.seconds).toFixed(1)},${this.y(low(point)).toFixed(1)}`);
      return [...upper, ...lower.reverse()].join(' ');
    };
    const rss = band(this.points, () => 0, (point) => point.rss);
    const clip = `below-${hatch}`;
    picture.append(svg('clipPath', { id: clip }, [svg('polygon', { points: rss })]));
    picture.append(svg('polygon', { class: 'unseen', points: rss }));
    const below = (point, count) => point.classes.slice(0, count).reduce((sum, bytes) => sum + bytes, 0);
    CLASSES.forEach((name, index) => {
      if (!this.composed.some((point) => point.classes[index])) return;
      const points = band(this.composed, (point) => below(point, index), (point) => below(point, index + 1));
      picture.append(svg('polygon', { class: `area ${name}`, 'clip-path': `url(#${clip})`, points }));
    });
    if (this.points.some((point) => point.kernel)) {
      const points = band(this.points, (point) => point.rss, (point) => point.rss + point.kernelDrawn);
      picture.append(svg('polygon', { class: 'area kernel', fill: `url(#${hatch})`, points }));
    }
    const line = this.points.map((point) => `${this.x(point.seconds).toFixed(1)},${this.y(point.rss).toFixed(1)}`);
    picture.append(svg('polyline', { class: 'rss', points: line.join(' ') }));
  }

  drawPhases(picture) {
    const { top, bottom } = this.inner;
    for (const phase of this.run.phases) {
      const [from, to] = [this.x(phase.from), this.x(phase.to)];
      picture.append(svg('line', { class: 'phase', x1: to, x2: to, y1: top - 18, y2: bottom }));
      if (to - from > phase.name.length * 7 + 6) {
        picture.append(svg('text', { x: (from + to) / 2, y: top - 22, 'text-anchor': 'middle' }, [phase.name]));
      }
    }
  }

  drawPeak(picture) {
    const { left, right } = this.inner;
    const { seconds, rss } = this.run.peak;
    const [x, y] = [this.x(seconds), this.y(rss)];
    picture.append(svg('circle', { class: 'dot', cx: x, cy: y, r: 5 }));
    const kernel = this.points[this.peakIndex()].kernelDrawn;
    const words = `peak ${human(rss)}`;
    const half = words.length * 3.6;
    const at = Math.max(left + half, Math.min(right - half, x));
    picture.append(svg('text', { class: 'strong halo', x: at, y: this.y(rss + kernel) - 9, 'text-anchor': 'middle' }, [words]));
  }

  phaseAt(seconds) {
    const phase = this.run.phases.find((it) => it.from <= seconds && seconds < it.to);
    return phase ? `, ${phase.name}` : '';
  }

  // What a point has, as the rows of the tooltip.
  rows(point) {
    const rows = [['RSS', exact(point.rss), null, true]];
    if (point.classes) {
      CLASSES.forEach((name, index) => rows.push([name, exact(point.classes[index]), name]));
    } else {
      rows.push(['classes', 'not looked at here']);
    }
    if (point.kernel !== null) rows.push(['kernel, outside RSS', exact(point.kernel), 'kernel']);
    if (point.spread) rows.push(['RSS moved meanwhile by', exact(point.spread)]);
    return rows;
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    const at = event.clientX - box.left;
    let best = 0;
    const distance = (index) => Math.abs(this.x(this.points[index].seconds) - at);
    this.points.forEach((_, index) => { if (distance(index) < distance(best)) best = index; });
    this.select(best, event.clientY);
  }

  key(event) {
    const last = this.points.length - 1;
    const far = Math.max(1, Math.round(last / 20));
    const to = {
      ArrowLeft: this.current - 1, ArrowRight: this.current + 1, ArrowDown: this.current - 1, ArrowUp: this.current + 1,
      PageDown: this.current - far, PageUp: this.current + far, Home: 0, End: last,
    }[event.key];
    if (event.key === 'Escape') this.leave();
    if (to === undefined) return;
    event.preventDefault();
    this.select(Math.max(0, Math.min(last, to)));
  }

  select(index, clientY) {
    if (!this.cross) return;
    this.current = index;
    const point = this.points[index];
    const [x, y] = [this.x(point.seconds), this.y(point.rss)];
    this.cross.replaceChildren(
      svg('line', { class: 'cross', x1: x, x2: x, y1: this.inner.top, y2: this.inner.bottom }),
      svg('circle', { class: 'dot', cx: x, cy: y, r: 4 }),
    );
    this.cross.setAttribute('visibility', 'visible');
    const title = `${point.seconds.toFixed(3)} s${this.phaseAt(point.seconds)}`;
    const rows = this.rows(point);
    const box = this.plot.getBoundingClientRect();
    tooltip.show(title, rows, box.left + x, clientY ?? box.top + y);
    this.plot.setAttribute('aria-valuenow', index);
    this.plot.setAttribute('aria-valuetext', `${title}: ${rows.map(([name, figure]) => `${name} ${figure}`).join('; ')}`);
  }

  leave() {
    this.cross?.setAttribute('visibility', 'hidden');
    tooltip.hide();
  }
}

const startTimelines = (runs) => {
  for (const plot of document.querySelectorAll('.timeline .plot')) {
    const run = runs.find((it) => it.id === Number(plot.dataset.run));
    plot.setAttribute('aria-valuemax', run.timeline.seconds.length - 1);
    new Timeline(plot, run);
  }
};
