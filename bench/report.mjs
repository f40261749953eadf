// How figures are shown: tables in Markdown, and the same as JSON with every round's value.
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { ratios, spread } from './statistics.mjs';

export const count = (value) => value.toLocaleString('en-US');

/** Three digits of a number. */
export const figure = (value) => {
  if (value === undefined || Number.isNaN(value)) return '–';
  if (Math.abs(value) >= 100) return count(Math.round(value));
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
};

const round = (value) => value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
const range = ({ min, median, max }) =>
  min === max ? round(median) : `${round(median)} (${round(min)} – ${round(max)})`;

/** An aim as a bound: {min} or {max}. */
const bound = (aim, unit = '') => {
  if (!aim) return '';
  return aim.min === undefined ? `≤ ${figure(aim.max)}${unit}` : `≥ ${figure(aim.min)}${unit}`;
};
const isMet = (aim, value) => value >= (aim.min ?? -Infinity) && value <= (aim.max ?? Infinity);

/**
 * A table of figures, each beside its baseline of the same rounds.
 * @param rows each `{figure, ours, baseline, theirs, aim}`: the values of the rounds of both sides, what the baseline is, and the
 *   bound that the median ratio is to keep; `aimOf: 'value'` if it is the figure itself that is to keep it
 */
export function comparison(title, rows, notes = []) {
  const shown = rows.map(({ figure: name, ours, baseline, theirs, aim, aimOf = 'ratio' }) => {
    const ratio = ratios(ours, theirs);
    const value = spread(ours);
    const judged = aimOf === 'ratio' ? ratio.median : value.median;
    return {
      ...{ figure: name, ours, baseline, theirs, ratio, aim, aimOf },
      met: aim ? isMet(aim, judged) : undefined,
      cells: [
        ...[name, figure(value.median), baseline, figure(spread(theirs).median), range(ratio)],
        bound(aim, aimOf === 'ratio' ? ' ×' : ''),
        aim ? (isMet(aim, judged) ? 'yes' : 'no') : '',
      ],
    };
  });
  const columns = ['Figure', 'Control plane', 'Baseline', 'Measured', 'Ratio', 'Aim', 'Met'];
  return {
    ...{ title, notes, columns },
    cells: shown.map(({ cells }) => cells),
    rows: shown.map(({ cells: _, ...row }) => row),
  };
}

/** A table of anything else. @param columns names, and what of a row is shown there */
export function table(title, columns, rows, notes = []) {
  const texts = Object.values(columns);
  const cells = rows.map((row) => texts.map((textOf) => String(textOf(row))));
  return { title, notes, columns: Object.keys(columns), cells, rows };
}

const line = (cells) => `| ${cells.join(' | ')} |`;

/** What machine and programs the figures are of. */
export function machine() {
  const model = cpus()[0]?.model.trim();
  return { cores: cpus().length, model, node: process.versions.node };
}

/** Prints tables as Markdown. */
export function print(tables) {
  for (const { title, notes, columns, cells } of tables) {
    console.log(`\n**${title}**\n`);
    console.log(line(columns));
    console.log(line(columns.map((_, i) => (i === 0 ? '---' : '--:'))));
    for (const row of cells) console.log(line(row));
    for (const note of notes) console.log(`\n${note}`);
  }
}

/** Writes tables to a file as JSON: the rows with their raw values. */
export function write(path, head, tables) {
  const plain = tables.map(({ title, notes, rows }) => ({ title, notes, rows }));
  writeFileSync(path, `${JSON.stringify({ ...head, tables: plain }, undefined, 2)}\n`);
}
