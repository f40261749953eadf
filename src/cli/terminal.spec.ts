import { stripVTControlCharacters } from 'node:util';
import { Terminal } from './terminal';

/** What is drawn of a page on a terminal of some size, without what moves the cursor. */
async function drawn(page: (maxLines: number) => string, size: { columns?: number; rows?: number }) {
  let text = '';
  const stdout = {
    isTTY: true,
    ...{ columns: 10, rows: 5 },
    write: (part: string) => {
      text += part;
    },
  };
  const terminal = new Terminal({
    stdout,
    stderr: { write: () => undefined },
    readInput: () => Buffer.alloc(0),
    interruptSignal: () => new AbortController().signal,
  });
  const screen = await terminal.openScreen();
  Object.assign(stdout, size);
  text = '';
  screen.show(page);
  screen.close();
  return stripVTControlCharacters(text).trimEnd().split('\n');
}

describe('a screen', () => {
  it('shows as much of the beginning as there is room for, and that there is more', async () => {
    const page = () => ['1', '2', '3', '4', '5', '6'].join('\n');
    expect(await drawn(page, {})).toEqual(['1', '2', '3', '...']);
    expect(await drawn(page, { rows: 8 })).toEqual(['1', '2', '3', '4', '5', '6']);
    expect(await drawn((maxLines) => String(maxLines), { rows: 30 })).toEqual(['29']);
  });

  it('cuts lines by the columns that they take: one that wraps would push the first out', async () => {
    const page = () => ['first', '漢字漢字漢字漢字', '🇫🇷🇫🇷🇫🇷🇫🇷🇫🇷🇫🇷', 'a long line of text'].join('\n');
    expect(await drawn(page, {})).toEqual(['first', '漢字漢字漢', '🇫🇷🇫🇷🇫🇷🇫🇷🇫🇷', 'a long lin']);
  });

  it('leaves the page as it is while the terminal has no size', async () => {
    expect(await drawn(() => 'a line of text', { columns: 0 })).toEqual(['']);
    expect(await drawn(() => 'a line of text', { rows: 0 })).toEqual(['']);
  });
});
