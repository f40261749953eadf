import { readFileSync } from 'node:fs';
import { readSettings, type Settings } from '../settings';
import { EXIT, Failure } from './failure';
import { harmless, harmlessJson } from './print';

/** A stream that a command writes to. */
export interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  /** Characters in a line, and lines, of a terminal. */
  readonly columns?: number;
  readonly rows?: number;
}

/** A page that is drawn again and again in one place. */
export interface Screen {
  /** Draws the page that is made for `maxLines`, and cuts off what does not fit. */
  show(pageOf: (maxLines: number) => string): void;
  /** Leaves the last page there. */
  close(): void;
}

/** What is around a command: a process's own, or what a test puts in its place. */
export interface Surroundings {
  /** The process's environment if it is left out. */
  readonly env?: NodeJS.ProcessEnv;
  readonly stdout: Output;
  readonly stderr: Output;
  /** Reads standard input to its end. */
  readInput(): Buffer;
  /** Aborts when the command is asked to end, as by Ctrl-C; who asks for it ends the command himself. */
  interruption(): AbortSignal;
  /** Called before a server begins to serve in this process. */
  onServe?(): void;
}

/** What a command reads and writes. */
export class Terminal {
  /** With what the command ends if nothing is thrown. */
  exitCode: number = EXIT.ok;

  constructor(private readonly surroundings: Surroundings) {}

  /** @throws SettingsError */
  settings(): Settings {
    return readSettings(this.surroundings.env);
  }

  /** Lets the process be a server's. */
  beginServing(): void {
    this.surroundings.onServe?.();
  }

  get isInteractive(): boolean {
    return this.surroundings.stdout.isTTY === true;
  }

  get interruption(): AbortSignal {
    return this.surroundings.interruption();
  }

  /** Writes to standard output, where the answer goes and nothing else. */
  print(text: string): void {
    this.surroundings.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
  }

  /** Writes JSON to standard output, so that a terminal is safe and the value is what it was. */
  printJson(text: string): void {
    this.print(harmlessJson(text));
  }

  /** Writes to standard error what the person should know besides. */
  note(text: string): void {
    this.surroundings.stderr.write(`${text.split('\n').map(harmless).join('\n')}\n`);
  }

  /** Begins to draw on the terminal. */
  async openScreen(): Promise<Screen> {
    const { stdout } = this.surroundings;
    // One that does not say its size can't be drawn on in place.
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
      // If it is too long, its end is what can be spared.
      show: (pageOf) => {
        const { columns, rows } = stdout;
        // One that is being resized may say 0: the page that is there stays.
        if (!columns || !rows) return;
        const maxLines = Math.max(1, rows - 1);
        let lines = pageOf(maxLines).split('\n');
        if (lines.length > maxLines) lines = [...lines.slice(0, maxLines - 1), '...'];
        // By what they take on the screen: a line that wraps would push the first ones out.
        draw(lines.map((line) => sliceAnsi(line, 0, columns)).join('\n'));
      },
      close: () => draw.done(),
    };
  }

  /** Shows only this from now on, if a person looks at it. */
  clear(): void {
    if (this.isInteractive) this.surroundings.stdout.write('\u001b[2J\u001b[H');
  }

  /**
   * The JSON of a file, or of standard input by the name `-`, as its text too: that is what is sent, so that the server
   * judges what the file says. Parsed and written again, a name that is there twice would be lost, and a number that is
   * too large would become null.
   * @throws Failure
   */
  readJson(file: string): { text: string; value: unknown } {
    let bytes: Buffer;
    try {
      bytes = file === '-' ? this.surroundings.readInput() : readFileSync(file);
    } catch (error) {
      throw new Failure(`${file} can't be read (${(error as NodeJS.ErrnoException).code}).`, EXIT.misused);
    }
    try {
      const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
      return { text, value: JSON.parse(text) };
    } catch (error) {
      throw new Failure(`${file} does not hold JSON: ${(error as Error).message}.`, EXIT.misused);
    }
  }
}
