import type { Command } from 'commander';
import { apiCommand, callAndPrint, listCommand, pageTable } from './api-command';
import { choiceOption, durationSeconds, id, integer, labelOption } from './arguments';
import { get, post, queryString, remove } from './client';
import { fields } from './print';
import type { Terminal } from './terminal';

const ROLES = ['viewer', 'operator', 'admin'];

const SHOWN_ONCE = 'The token is not shown again.';

/** Adds the commands for operators' tokens and for enrollment tokens. */
export function addTokens(program: Command, terminal: Terminal): void {
  const token = program.command('token').alias('tokens').description("create and revoke operators' tokens");
  apiCommand(
    token,
    'create <name>',
    "create an operator's token, and show it once; works on the database's file if no server runs",
    'token create alice --role operator --expires-in 90d',
  )
    .addOption(
      choiceOption(
        '--role <role>',
        'the role; each includes the ones before it',
        ROLES,
      ).makeOptionMandatory(),
    )
    .option(
      '--expires-in <duration>',
      'how long it is valid, such as 90d; forever by default',
      durationSeconds,
    )
    .action((name: string, { role, expiresIn: expires_in, ...options }) =>
      callAndPrint(
        terminal,
        options,
        post('/v1/operator-tokens', { name, role, expires_in }, false),
        (made) => `${fields(made)}\n\n${SHOWN_ONCE}`,
        { allowInProcess: true },
      ),
    );
  listCommand(token, 'list', "list operators' tokens, including revoked ones", 'token list').action(
    ({ limit, cursor, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(`/v1/operator-tokens${queryString({ limit, cursor })}`),
        pageTable('id', 'name', 'role', 'origin', 'created_at', 'expires_at', 'revoked_at', 'last_used_at'),
      ),
  );
  apiCommand(token, 'revoke', 'revoke a token, effective at once', 'token revoke 2')
    .argument('<id>', "the token's id", id)
    .action((of, options) =>
      callAndPrint(terminal, options, remove(`/v1/operator-tokens/${of}`), () => `Token ${of} is revoked.`),
    );

  const enrollment = program
    .command('enrollment')
    .description('create and revoke tokens that agents register with');
  apiCommand(
    enrollment,
    'create <name>',
    'create an enrollment token, and show it once',
    'enrollment create rack-7 --label region=eu --max-uses 20 --expires-in 1d',
  )
    .addOption(labelOption())
    .option('--expires-in <duration>', 'how long it is valid, such as 1d', durationSeconds)
    .option('--max-uses <n>', 'how many agents may register with it', integer)
    .action((name: string, { label: labels, expiresIn: expires_in, maxUses: max_uses, ...options }) =>
      callAndPrint(
        terminal,
        options,
        post('/v1/enrollment-tokens', { name, labels, expires_in, max_uses }, false),
        (made) => `${fields(made)}\n\n${SHOWN_ONCE}`,
      ),
    );
  listCommand(enrollment, 'list', 'list enrollment tokens', 'enrollment list').action(
    ({ limit, cursor, ...options }) =>
      callAndPrint(
        terminal,
        options,
        get(`/v1/enrollment-tokens${queryString({ limit, cursor })}`),
        pageTable('id', 'name', 'labels', 'uses', 'max_uses', 'created_at', 'expires_at', 'revoked_at'),
      ),
  );
  apiCommand(
    enrollment,
    'revoke',
    'revoke an enrollment token; agents that registered with it stay registered',
    'enrollment revoke 3',
  )
    .argument('<id>', "the token's id", id)
    .action((of, options) =>
      callAndPrint(
        terminal,
        options,
        remove(`/v1/enrollment-tokens/${of}`),
        () => `Enrollment token ${of} is revoked.`,
      ),
    );
}
