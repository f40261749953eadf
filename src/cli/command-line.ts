import { Command, CommanderError } from 'commander';
import { DatabaseError } from '../database/database-error';
import { ExtensionError } from '../extensions';
import { SettingsError } from '../settings';
import { addAgents } from './agents';
import { addAudit } from './audit';
import { addCompletion } from './completion';
import { addConfigs } from './configs';
import { addDatabase } from './database';
import { addDoctor } from './doctor';
import { EXIT, Failure } from './failure';
import { addImportOriginal } from './import-original';
import { addLimits } from './limits';
import { addMoving } from './move';
import { addTasks } from './tasks';
import { type Surroundings, Terminal } from './terminal';
import { addTokens } from './tokens';
import { addTop } from './top';

const { version } = require('../../package.json') as { version: string };

/**
 * Runs one command of the program in this process, without ending it.
 * @param args as after the program's name
 * @returns the exit code; `serve` goes on serving after its 0
 */
export async function runCommandLine(args: readonly string[], surroundings: Surroundings): Promise<number> {
  const terminal = new Terminal(surroundings);
  try {
    await programFor(terminal, surroundings).parseAsync(args, { from: 'user' });
    return terminal.exitCode;
  } catch (error) {
    return explain(terminal, error);
  }
}

function programFor(terminal: Terminal, { stdout, stderr }: Surroundings): Command {
  const program = new Command('control-plane')
    .description('The DNS Agent Control Plane: the server, and what its operators do with it.')
    .version(version)
    // Behind a command, --version is that command's: `agents list --version` filters by it.
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: (text) => stderr.write(text),
      outputError: (text, write) => write(worded(text)),
    })
    .addHelpText(
      'after',
      `
On the server's own machine, commands that act through the API find the server by the file that it leaves beside its
database, and show it the admin's token once it has proven to be that server. To reach one elsewhere, set
CONTROL_PLANE_URL to its address and CONTROL_PLANE_TOKEN to an operator's token.

Exit codes: 0 done; 1 refused or failed; 2 wrong arguments or settings; 3 not reachable, busy or over a quota: try again.

Examples:
  $ control-plane serve
  $ control-plane task add dns query=example.com
  $ control-plane agents list --status offline --json`,
    );
  addDatabase(program, terminal);
  addMoving(program, terminal);
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

/** Ends every usage error with the command that explains the usage. */
function pointToHelp(command: Command, path: string): void {
  command.showHelpAfterError(`Run \`${path} --help\`.`);
  for (const one of command.commands) pointToHelp(one, `${path} ${one.name()}`);
}

/** Words Commander's error about an argument as a sentence: `the id 'x' is not a whole number`. */
const worded = (text: string): string =>
  text.replace(
    /^error: command-argument value '(.*)' is invalid for argument '(.*)'\. It must be (.*)\.$/ms,
    "error: the $2 '$1' is not $3",
  );

/** Says why the command ends. @returns with which exit code */
function explain(terminal: Terminal, error: unknown): number {
  // It has said what is wrong already; asking for help is not wrong.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.misused;
  const expected = [Failure, SettingsError, DatabaseError, ExtensionError].some(
    (type) => error instanceof type,
  );
  terminal.note(expected ? (error as Error).message : String((error as Error)?.stack ?? error));
  if (error instanceof Failure) return error.exitCode;
  return error instanceof SettingsError ? EXIT.misused : EXIT.failed;
}
