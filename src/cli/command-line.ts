import { inspect } from 'node:util';
import { Command, CommanderError } from 'commander';
import { DatabaseError } from '../database/database-error';
import { ExtensionError } from '../extensions';
import { SettingsError } from '../settings';
import { addAgents } from './agents';
import { addAudit } from './audit';
import { CommandError, EXIT } from './command-error';
import { addCompletion } from './completion';
import { addConfigs } from './configs';
import { addDatabase } from './database';
import { addDoctor } from './doctor';
import { addImportOriginal } from './import-original';
import { addLimits } from './limits';
import { addServe } from './serve';
import { addTasks } from './tasks';
import { type ProcessIo, Terminal } from './terminal';
import { addTokens } from './tokens';
import { addTop } from './top';
import { addTransfer } from './transfer';

const { version } = require('../../package.json') as { version: string };

/**
 * Runs one command in this process, without ending it. Every import below this file that loads the application, a database
 * driver or another large package is dynamic: help and the API's commands start without them.
 * @param args the arguments after the program's name; none means `serve`
 * @returns the exit code; `serve` returns 0 when it listens, and continues to serve
 */
export async function runCommandLine(args: readonly string[], io: ProcessIo): Promise<number> {
  const terminal = new Terminal(io);
  try {
    const program = createProgram(terminal, io);
    await program.parseAsync(args.length === 0 ? ['serve'] : args, { from: 'user' });
    return terminal.exitCode;
  } catch (error) {
    return reportError(terminal, error);
  }
}

function createProgram(terminal: Terminal, { stdout, stderr }: ProcessIo): Command {
  const program = new Command('control-plane')
    .description('The DNS Agent Control Plane: runs the server, and calls its API for operators.')
    .version(version)
    // After a command, --version is the command's own: `agents list --version` filters by it.
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: (text) => stderr.write(text),
      outputError: (text, write) => write(rephrase(text)),
    })
    .addHelpText(
      'after',
      `
On the server's own machine, commands that call the API find the server by the file that it writes beside its database.
They send the admin's token once it has proven to be that server. To reach a server on another machine, set
CONTROL_PLANE_URL to its address and CONTROL_PLANE_TOKEN to an operator's token.

Exit codes: 0 done; 1 refused or failed; 2 wrong arguments or settings; 3 unreachable, busy or over a quota: try again.

Examples:
  $ control-plane serve
  $ control-plane task add dns query=example.com
  $ control-plane agents list --status offline --json`,
    );
  addServe(program, terminal);
  addDatabase(program, terminal);
  addTransfer(program, terminal);
  addImportOriginal(program, terminal);
  addDoctor(program, terminal);
  addAgents(program, terminal);
  addTasks(program, terminal);
  addLimits(program, terminal);
  addConfigs(program, terminal);
  addTokens(program, terminal);
  addAudit(program, terminal);
  addTop(program, terminal);
  addCompletion(program, terminal);
  pointToHelp(program, program.name());
  return program;
}

/** Ends every usage error with the command that shows the help. */
function pointToHelp(command: Command, path: string): void {
  command.showHelpAfterError(`Run \`${path} --help\`.`);
  for (const one of command.commands) pointToHelp(one, `${path} ${one.name()}`);
}

/** Rephrases Commander's error about an argument as a sentence: `the id 'x' is not a whole number`. */
const rephrase = (text: string): string =>
  text.replace(
    /^error: command-argument value '(.*)' is invalid for argument '(.*)'\. It must be (.*)\.$/ms,
    "error: the $2 '$1' is not $3",
  );

/** Prints why the command failed. @returns the exit code */
function reportError(terminal: Terminal, error: unknown): number {
  // Commander has reported it already. A request for help is not an error.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  const isExpected = [CommandError, SettingsError, DatabaseError, ExtensionError].some(
    (type) => error instanceof type,
  );
  terminal.note(isExpected ? (error as Error).message : inspect(error));
  if (error instanceof CommandError) return error.exitCode;
  return error instanceof SettingsError ? EXIT.usage : EXIT.failed;
}
