import { readFileSync } from 'node:fs';
import { readSettings, type Settings } from '../settings';
import { CommandError, EXIT } from './command-error';
import { escapeControls, escapeJson } from './print';

/** A stream that a command writes to. */
export interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  /** The size of a terminal: characters in a line, and lines. */
  readonly columns?: number;
  readonly rows?: number;
}

/** A page that is redrawn in place. */
export interface Screen {
  /** Draws the page, made for at most `maxLines` lines; cuts off what does not fit. */
  show(pageOf: (maxLines: number) => string): void;
  /** Ends drawing; the last page stays visible. */
  close(): void;
}

/** The inputs and outputs of a command: those of the process, or a test's. */
export interface ProcessIo {
  /** By default the environment of the process. */
  readonly env?: NodeJS.ProcessEnv;
  readonly stdout: Output;
  readonly stderr: Output;
  /** Reads standard input to its end. */
  readInput(): Buffer;
  /** Aborts on Ctrl-C. A command that reads it must end by itself: the process no longer does. */
  interruptSignal(): AbortSignal;
  /** Called before a server starts in this process. */
  onServe?(): void;
}

/** Reads and writes for a command, safely for a terminal. */
export class Terminal {
  /** The exit code if nothing is thrown. */
  exitCode: number = EXIT.ok;

  constructor(private readonly io: ProcessIo) {}

  /** Reads the settings. @throws SettingsError a setting is unknown or invalid */
  settings(): Settings {
    return readSettings(this.io.env);
  }

  /** Prepares the process to run a server. */
  beginServing(): void {
    this.io.onServe?.();
  }

  /** Whether standard output is a terminal. */
  get isInteractive(): boolean {
    return this.io.stdout.isTTY === true;
  }

  /** Aborts on Ctrl-C; see {@link ProcessIo}. */
  get interruptSignal(): AbortSignal {
    return this.io.interruptSignal();
  }

  /** Writes to standard output, which carries only the command's result. */
  print(text: string): void {
    this.io.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
  }

  /** Writes JSON to standard output, escaped for a terminal; its value stays the same. */
  printJson(text: string): void {
    this.print(escapeJson(text));
  }

  /** Writes a message for the person to standard error. */
  note(text: string): void {
    this.io.stderr.write(`${text.split('\n').map(escapeControls).join('\n')}\n`);
  }

  /** Starts drawing a page in place. */
  async openScreen(): Promise<Screen> {
    const { stdout } = this.io;
    // A terminal of unknown size can't be drawn on in place.
    if (!stdout.columns || !stdout.rows)
      return {
        show: (pageOf) => {
          this.clear();
          this.print(pageOf(Number.POSITIVE_INFINITY));
        },
        close: () => undefined,
      };
    const [{ createLogUpdate }, { default: sliceAnsi }] = await Promise.all([
      import('log-update'),
      import('slice-ansi'),
    ]);
    const draw = createLogUpdate(stdout as NodeJS.WriteStream, { showCursor: true });
    this.clear();
    return {
      // If the page is too long, its end is cut off.
      show: (pageOf) => {
        const { columns, rows } = stdout;
        // A terminal may report 0 while it is resized: keep the last page.
        if (!columns || !rows) return;
        const maxLines = Math.max(1, rows - 1);
        let lines = pageOf(maxLines).split('\n');
        if (lines.length > maxLines) lines = [...lines.slice(0, maxLines - 1), '...'];
        // Cut by screen columns: a line that wraps would scroll the first lines away.
        draw(lines.map((line) => sliceAnsi(line, 0, columns)).join('\n'));
      },
      close: () => draw.done(),
    };
  }

  /** Clears the screen if standard output is a terminal. */
  clear(): void {
    if (this.isInteractive) this.io.stdout.write('\u001b[2J\u001b[H');
  }

  /**
   * Reads JSON from a file, or from standard input if the name is `-`.
   * @returns its value and its text. Send the text, so that the server checks the file itself: serialized again, duplicate
   * names would be lost, and numbers that are too large would become null.
   * @throws CommandError the file can't be read, or does not hold JSON
   */
  readJson(file: string): { text: string; value: unknown } {
    let bytes: Buffer;
    try {
      bytes = file === '-' ? this.io.readInput() : readFileSync(file);
    } catch (error) {
      throw new CommandError(`${file} can't be read (${(error as NodeJS.ErrnoException).code}).`, EXIT.usage);
    }
    try {
      const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
      return { text, value: JSON.parse(text) };
    } catch (error) {
      throw new CommandError(`${file} does not hold JSON: ${(error as Error).message}.`, EXIT.usage);
    }
  }
}
