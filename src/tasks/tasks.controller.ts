import { Body, Controller, Get, Header, HttpCode, Param, Post, Query } from '@nestjs/common';
import {
  ApiCreatedResponse,
  ApiExtension,
  ApiHeader,
  ApiOkResponse,
  ApiOperation,
  ApiTags,
} from '@nestjs/swagger';
import { Operator } from '../http/access.decorators';
import { GuardedErrors } from '../http/api-errors';
import { BodyLimit, MAX_BODY } from '../http/body-limit.decorators';
import type { OperatorIdentity } from '../http/control-plane-request';
import type { HangUpSignal } from '../http/hang-up';
import { BulkWrite, ShedFirst } from '../http/load.decorators';
import { LogsFacts } from '../http/log-facts.decorators';
import { CurrentOperator, HangUp, IdempotencyKey, IdInPath } from '../http/parameter.decorators';
import { Traceparent } from '../http/trace-context';
import { IdParam } from '../http/validation';
import { BulkTasks } from './bulk-tasks';
import { TaskWhy } from './task-why.dto';
import { TaskWhyService } from './task-why.service';
import {
  AttemptsQuery,
  BulkAnswer,
  BulkCancelRequest,
  BulkRetryRequest,
  EnqueueRequest,
  EnqueueResponse,
  TaskDetail,
  TaskPage,
  TaskStats,
  TasksQuery,
} from './tasks.dto';
import { TasksService } from './tasks.service';

/** The answer is JSON text already. */
const AnswersJsonText = () => Header('content-type', 'application/json; charset=utf-8');

/** Of more tasks than this, the line in the log names the first and the last. */
const LOGGED_IDS = 20;

function taskIdsOf({ tasks }: EnqueueResponse): Record<string, unknown> {
  const ids = tasks.map(({ id }) => id);
  if (ids.length === 1) return { task_id: ids[0] };
  return ids.length <= LOGGED_IDS
    ? { task_ids: ids }
    : { tasks: ids.length, first_task_id: Math.min(...ids), last_task_id: Math.max(...ids) };
}

/** What operators do with tasks. */
@ApiTags('tasks')
@Controller('v1/tasks')
export class TasksController {
  constructor(
    private readonly tasks: TasksService,
    private readonly bulk: BulkTasks,
    private readonly why: TaskWhyService,
  ) {}

  /** Enqueues tasks, all or none, and answers in the order sent. */
  @Post()
  @Operator('operator')
  @ShedFirst()
  @BulkWrite()
  @BodyLimit(MAX_BODY)
  @LogsFacts(taskIdsOf)
  @ApiExtension('x-changes-fleet', false)
  @ApiOperation({ operationId: 'enqueueTasks', summary: 'Enqueue tasks' })
  @ApiHeader({
    name: 'Idempotency-Key',
    required: false,
    description: 'The same key and body again get the same answer, and nothing is enqueued twice.',
  })
  @ApiHeader({
    name: 'traceparent',
    required: false,
    description:
      'By W3C Trace Context: the tasks belong to this trace. One that is malformed counts as none.',
  })
  @ApiCreatedResponse({ type: EnqueueResponse })
  @GuardedErrors('ERR_CONFLICT')
  enqueue(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: EnqueueRequest,
    @IdempotencyKey() key: string | undefined,
    @Traceparent() traceparent: string | undefined,
  ): Promise<EnqueueResponse> {
    return this.tasks.enqueue(operator, body.tasks, key, traceparent);
  }

  /**
   * Lists tasks, newest first: by when they ended, if `state` is one in which they have; by when the last attempt
   * ended, if that is asked for; else by ids.
   */
  @Get()
  @Operator('viewer')
  @ApiOperation({ operationId: 'listTasks', summary: 'List tasks' })
  @ApiOkResponse({ type: TaskPage })
  @GuardedErrors()
  list(@Query() query: TasksQuery): Promise<TaskPage> {
    return this.tasks.list(query);
  }

  /** How many tasks of each kind are in each state, and how old the oldest is. */
  @Get('stats')
  @Operator('viewer')
  @ApiOperation({ operationId: 'getTaskStats', summary: 'Show the depth of the queue' })
  @ApiOkResponse({ type: TaskStats })
  @GuardedErrors()
  stats(): Promise<TaskStats> {
    return this.tasks.stats();
  }

  /** Shows a task with its attempts and their observations. */
  @Get(':id')
  @Operator('viewer')
  @IdInPath()
  @ApiOperation({ operationId: 'getTask', summary: 'Show a task' })
  @ApiOkResponse({ type: TaskDetail })
  @AnswersJsonText()
  @GuardedErrors('ERR_NOT_FOUND')
  get(@Param('id', IdParam) id: number, @Query() query: AttemptsQuery): Promise<string> {
    return this.tasks.get(id, query);
  }

  /** Tells the one reason why a task does not run, with numbers, and the least change that would let it. */
  @Get(':id/why')
  @Operator('viewer')
  @IdInPath()
  @ApiOperation({ operationId: 'explainTask', summary: 'Explain why a task does not run' })
  @ApiOkResponse({ type: TaskWhy })
  @GuardedErrors('ERR_NOT_FOUND')
  explain(@Param('id', IdParam) id: number): Promise<TaskWhy> {
    return this.why.explain(id);
  }

  /**
   * Cancels the unfinished tasks that match, in batches; live leases are revoked. A request works for 5 s at most: if
   * `changed` is less than `matched`, send it again until it is 0.
   */
  @Post('cancel')
  @HttpCode(200)
  @Operator('operator')
  @ApiOperation({ summary: 'Cancel tasks by a filter' })
  @ApiOkResponse({ type: BulkAnswer })
  @GuardedErrors()
  cancelMany(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: BulkCancelRequest,
    @HangUp() hangUp: HangUpSignal,
  ): Promise<BulkAnswer> {
    return this.bulk.cancel(operator, body, hangUp);
  }

  /**
   * Reopens the dead and cancelled tasks that match, in batches. One whose `unique_key` another task has by now stays as
   * it is. A request works for 5 s at most: if `changed` is less than `matched`, send it again until it is 0.
   */
  @Post('retry')
  @HttpCode(200)
  @Operator('operator')
  @ApiOperation({ summary: 'Retry tasks by a filter' })
  @ApiOkResponse({ type: BulkAnswer })
  @GuardedErrors()
  retryMany(
    @CurrentOperator() operator: OperatorIdentity,
    @Body() body: BulkRetryRequest,
    @HangUp() hangUp: HangUpSignal,
  ): Promise<BulkAnswer> {
    return this.bulk.retry(operator, body, hangUp);
  }

  /** Cancels an unfinished task; a live lease on it is revoked. */
  @Post(':id/cancel')
  @HttpCode(200)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'cancelTask', summary: 'Cancel a task' })
  @ApiOkResponse({ type: TaskDetail })
  @AnswersJsonText()
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  cancel(@CurrentOperator() operator: OperatorIdentity, @Param('id', IdParam) id: number): Promise<string> {
    return this.tasks.cancel(operator, id);
  }

  /** Reopens a dead or cancelled task: it starts afresh, with all its attempts before it. */
  @Post(':id/retry')
  @HttpCode(200)
  @Operator('operator')
  @IdInPath()
  @ApiOperation({ operationId: 'retryTask', summary: 'Retry a task' })
  @ApiOkResponse({ type: TaskDetail })
  @AnswersJsonText()
  @GuardedErrors('ERR_NOT_FOUND', 'ERR_CONFLICT')
  retry(@CurrentOperator() operator: OperatorIdentity, @Param('id', IdParam) id: number): Promise<string> {
    return this.tasks.retry(operator, id);
  }
}
